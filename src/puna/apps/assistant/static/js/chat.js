// One conversation: opening it, sending messages, following an answer, and branches. What happens is told as events of
// state.js, which the thread and the composer listen to.
import { get, patch, post, resumable } from "/static/web/js/api.js";
import { sentence, t } from "/static/web/js/i18n.js";
import { loadModels } from "./models.js";
import { card, chosen, emit, state } from "./state.js";

let follower = null;

const base = () => `/app/conversations/${state.conversation.id}`;

function leave() {
  follower?.abort();
  follower = null;
  setWriting(null);
}

function setWriting(value) {
  state.writing = value;
  emit("writing");
}

function show(whole) {
  state.conversation = whole.conversation;
  state.messages = whole.messages;
  emit("messages");
  emit("conversation");
}

/** Start a new conversation, with the model and settings of the last one. */
export function begin() {
  leave();
  const { model, settings } = chosen();
  state.draft = { model: card(model)?.id ?? state.models[0]?.id ?? null, system: "", settings: { ...settings } };
  state.conversation = null;
  state.messages = [];
  if (location.hash !== "#/") history.pushState(null, "", "#/");
  emit("messages");
  emit("conversation");
  emit("focus");
}

/** Open a conversation, and follow the answer that is being written in it. */
export async function open(id) {
  leave();
  const whole = await get(`/app/conversations/${id}`);
  show(whole);
  if (!card()) await loadModels();
  if (!card()) offer(t("gone.conversation", { model: whole.conversation.model }), () => emit("focus"));
  const last = state.messages.at(-1);
  if (last?.writing) run({ follow: last.id });
  else if (last?.role === "user" && card()) emit("failure", { text: t("error.unanswered"), retry: () => regenerate(last.id) });
}

/** Send a message at the end, or (parent given) as another version of the message there. */
export async function send(content, parent) {
  if (state.writing) return;
  if (state.conversation === null) {
    const { model, system, settings } = state.draft;
    try {
      state.conversation = await post("/app/conversations", { ...(model ? { model } : {}), system, settings });
    } catch (error) {
      if (error.code !== "model_not_found") throw error;
      emit("unsent", content);
      await gone(model, () => emit("submit"));
      return;
    }
    history.pushState(null, "", `#/c/${state.conversation.id}`);
    emit("conversation");
  }
  const after = parent !== undefined ? parent : (state.messages.at(-1)?.id ?? null);
  await run({ path: `${base()}/messages`, body: { content, parent: after } });
}

/** Generate another answer to the same message. */
export const regenerate = (id) => run({ path: `${base()}/messages/${id}/regenerate`, body: {} });

/** Continue an answer that was cut short, or from one of its tokens with another in its place. */
export const continueAnswer = (id, body = {}) => run({ path: `${base()}/messages/${id}/continue`, body });

/** Stop the answer that is being written. */
export async function stop() {
  if (typeof state.writing === "string") await post(`${base()}/messages/${state.writing}/stop`);
}

/** Show another branch, the one through this message. */
export async function branch(id) {
  if (!state.writing) show(await post(`${base()}/branches`, { message: id }));
}

/** Change the title, model, system prompt or settings. */
export async function change(changes) {
  if (state.conversation === null) Object.assign(state.draft, changes);
  else state.conversation = await patch(base(), changes);
  if (!state.messages.length) emit("messages");
  emit("conversation");
}

/** Say that a model is no longer served, and offer those that are. again: what to do with the one that is chosen. */
async function gone(model, again) {
  await loadModels();
  offer(t("gone.model", { model }), again);
}

function offer(text, again) {
  const choose = (id) => async () => {
    emit("calm");
    await change({ model: id });
    await again();
  };
  emit("failure", { text, choices: state.models.map(({ id }) => ({ text: t("gone.choose", { model: id }), act: choose(id) })) });
}

async function run(request) {
  if (state.writing && !request.follow) return;
  const mine = (follower = new AbortController());
  setWriting(request.follow ?? true);
  emit("calm");
  let current = request.follow ?? null;
  const handle = (event, data) => {
    if (mine.signal.aborted) return;
    if (event === "start") {
      current = join(data.messages);
      if (data.title) state.conversation.title = data.title;
      setWriting(current);
      emit("list");
      emit("title");
    } else if (event === "update") emit("update", { id: current, data });
    else end(event, data, current);
  };
  const place = { started: (data) => data.messages.at(-1).id, eventsOf: (id) => `${base()}/messages/${id}/events` };
  try {
    await resumable(request, place, handle, mine.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.code === "model_not_found") {
      await lost(request);
      return;
    }
    emit("failure", { text: sentence(error), retry: () => (request.path ? run(request) : open(state.conversation.id)) });
    if (request.path?.endsWith("/messages")) emit("unsent", request.body.content);
  } finally {
    if (follower === mine) setWriting(null);
  }
}

/** A request for an answer of a model that is gone: what was to be sent waits for another one to be chosen. */
async function lost({ path, body }) {
  const sent = path.endsWith("/messages");
  if (sent) emit("unsent", body.content);
  const at = /messages\/([\w-]+)\//.exec(path)?.[1];
  const writer = path.endsWith("/continue") ? state.messages.find((message) => message.id === at)?.model : null;
  await gone(writer ?? chosen().model, () => (sent ? emit("submit") : regenerate(at)));
}

/** Put a message and its answer where they belong in the branch that is shown; returns the answer's id. */
function join(pair) {
  const first = pair[0];
  const known = state.messages.findIndex((message) => message.id === first.id);
  const parent = state.messages.findIndex((message) => message.id === first.parent);
  state.messages = [...state.messages.slice(0, known >= 0 ? known : parent + 1), ...pair];
  emit("messages");
  return pair.at(-1).id;
}

function end(event, data, current) {
  if (data.message) {
    const at = state.messages.findIndex((message) => message.id === data.message.id);
    if (at >= 0) state.messages[at] = data.message;
    emit("finished", { message: data.message, announced: event !== "failed" });
  } else {
    state.messages = state.messages.filter((message) => message.id !== current);
    emit("messages");
  }
  if (event === "failed") {
    const last = state.messages.at(-1);
    const error = { ...data.error, status: statusOf(data.error) };
    emit("failure", { text: sentence(error), retry: last ? () => regenerate(last.id) : null });
  }
  emit("list");
}

const statusOf = (error) =>
  ({ rate_limit_error: 429, service_unavailable_error: 503, authentication_error: 401 })[error.type] ?? 400;
