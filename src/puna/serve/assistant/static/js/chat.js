// One conversation: opening it, saying something, following an answer, and branches.
import { announce } from "./dom.js";
import { answer, get, patch, post } from "./api.js";
import { sentence, t } from "./i18n.js";
import { chosen, emit, state } from "./state.js";
import * as thread from "./thread.js";

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
  thread.reset();
  emit("conversation");
}

/** Begin a new conversation; the model and settings of the last one stay. */
export function begin() {
  leave();
  const { model, settings } = chosen();
  state.draft = { model, system: "", settings: { ...settings } };
  state.conversation = null;
  state.messages = [];
  if (location.hash !== "#/") history.pushState(null, "", "#/");
  thread.reset();
  emit("conversation");
  emit("focus");
}

/** Open a conversation, and follow the answer that is being written in it. */
export async function open(id) {
  leave();
  const whole = await get(`/app/conversations/${id}`);
  show(whole);
  const last = state.messages.at(-1);
  if (last?.writing) run({ follow: last.id });
  else if (last?.role === "user") thread.fail(t("error.unanswered"), () => again(last.id));
}

/** Say something at the end, or (parent given) as another version of what stands there. */
export async function say(content, parent) {
  if (state.writing) return;
  if (state.conversation === null) {
    const { model, system, settings } = state.draft;
    state.conversation = await post("/app/conversations", { ...(model ? { model } : {}), system, settings });
    history.pushState(null, "", `#/c/${state.conversation.id}`);
    emit("conversation");
  }
  const after = parent !== undefined ? parent : (state.messages.at(-1)?.id ?? null);
  await run({ path: `${base()}/messages`, body: { content, parent: after } });
}

/** Another answer to the same. */
export const again = (id) => run({ path: `${base()}/messages/${id}/regenerate`, body: {} });

/** Go on where an answer was cut short, or from a token on with another one in its place. */
export const goOn = (id, body = {}) => run({ path: `${base()}/messages/${id}/continue`, body });

/** End the answer that is being written. */
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
  emit("conversation");
}

async function run(ask) {
  if (state.writing && !ask.follow) return;
  const mine = (follower = new AbortController());
  setWriting(ask.follow ?? true);
  thread.calm();
  let current = ask.follow ?? null;
  const handle = (event, data) => {
    if (mine.signal.aborted) return;
    if (event === "start") {
      current = join(data.messages);
      if (data.title) state.conversation.title = data.title;
      setWriting(current);
      emit("list");
      emit("title");
    } else if (event === "update") thread.live(current, data);
    else end(event, data, current);
  };
  try {
    await answer(base(), ask, handle, mine.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    const last = state.messages.at(-1);
    thread.fail(sentence(error), () => (ask.path ? run(ask) : open(state.conversation.id)), last);
    if (ask.path?.endsWith("/messages")) emit("unsent", ask.body.content);
  } finally {
    if (follower === mine) setWriting(null);
  }
}

/** Put the question and its answer where they belong in the branch that is shown; returns the answer's id. */
function join(pair) {
  const first = pair[0];
  const known = state.messages.findIndex((message) => message.id === first.id);
  const parent = state.messages.findIndex((message) => message.id === first.parent);
  state.messages = [...state.messages.slice(0, known >= 0 ? known : parent + 1), ...pair];
  thread.reset();
  return pair.at(-1).id;
}

function end(event, data, current) {
  if (data.message) {
    const at = state.messages.findIndex((message) => message.id === data.message.id);
    if (at >= 0) state.messages[at] = data.message;
    thread.finish(data.message);
  } else {
    state.messages = state.messages.filter((message) => message.id !== current);
    thread.reset();
  }
  if (event === "failed") {
    const last = state.messages.at(-1);
    const error = { ...data.error, status: statusOf(data.error) };
    thread.fail(sentence(error), last ? () => again(last.id) : null);
  } else {
    const said = thread.textOf(data.message.id);
    announce(`${t("announce.done")} ${said.length > 600 ? `${said.slice(0, 600)}…` : said}`);
  }
  emit("list");
}

const statusOf = (error) =>
  ({ rate_limit_error: 429, service_unavailable_error: 503, authentication_error: 401 })[error.type] ?? 400;
