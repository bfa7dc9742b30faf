// What the page knows, and who wants to hear of changes.

export const state = {
  models: [],
  user: "",
  signedIn: false,
  /** The conversation that is open, null for one that has not begun. */
  conversation: null,
  /** The messages of the branch that is shown. */
  messages: [],
  /** What a conversation that has not begun is going to have. */
  draft: { model: null, system: "", settings: {} },
  /** The id of the answer that is being written here, or true before it has one. */
  writing: null,
};

const bus = new EventTarget();

/** Call `listener` whenever something of this name happens. */
export const on = (name, listener) => bus.addEventListener(name, (event) => listener(event.detail));
export const emit = (name, detail) => bus.dispatchEvent(new CustomEvent(name, { detail }));

/** Model, system prompt and settings of the conversation, begun or not. */
export const chosen = () => state.conversation ?? state.draft;

/** The card of a model; the usual one when it is no longer served. */
export const card = (id = chosen().model) => state.models.find((model) => model.id === id) ?? state.models[0];
