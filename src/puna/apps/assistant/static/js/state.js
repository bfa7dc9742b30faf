// The state of the page, and the events by which its parts tell each other what happened.

export const state = {
  models: [],
  user: "",
  signedIn: false,
  /** The open conversation; null for one without messages. */
  conversation: null,
  /** The messages of the branch that is shown. */
  messages: [],
  /** The settings that a new conversation will have. */
  draft: { model: null, system: "", settings: {} },
  /** The id of the answer that is being written here, or true before it has one. */
  writing: null,
};

const bus = new EventTarget();

/** Call `listener` on every event of this name. */
export const on = (name, listener) => bus.addEventListener(name, (event) => listener(event.detail));
export const emit = (name, detail) => bus.dispatchEvent(new CustomEvent(name, { detail }));

/** Model, system prompt and settings of the conversation, stored or new. */
export const chosen = () => state.conversation ?? state.draft;

/** The card of a model; without an id the conversation's. Undefined when it is no longer served. */
export const card = (id = chosen().model) => state.models.find((model) => model.id === id);
