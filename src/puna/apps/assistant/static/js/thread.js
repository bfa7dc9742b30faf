// The branch that is shown, from its first message to its last, and the answer being written at its end.
import { announce, el } from "/static/web/js/dom.js";
import { t } from "/static/web/js/i18n.js";
import { emptyState } from "./empty.js";
import { edit, messageNode } from "./message.js";
import { on, state } from "./state.js";
import { sync } from "/static/web/js/rich_text.js";
import { writingNote } from "./usage.js";

let list = null;
let scroller = null;
let stuck = true;
const nodes = new Map();

/** The thread, which follows the events of a conversation. */
export function threadView() {
  list = el("div", { class: "thread", id: "thread" });
  scroller = el("div", { class: "scroller", tabindex: "0", role: "region", onscroll: onScroll }, list);
  on("messages", reset);
  on("update", ({ id, data }) => live(id, data));
  on("finished", ({ message, announced }) => finish(message, announced));
  on("failure", fail);
  on("calm", calm);
  on("edit last", editLast);
  on("edit", (message) => edit(nodes.get(message.id).node, message));
  on("models", () => state.messages.length || reset());
  return scroller;
}

function onScroll() {
  stuck = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
}

function toEnd() {
  if (stuck) scroller.scrollTop = scroller.scrollHeight;
}

/** Show state.messages, reusing the nodes of unchanged messages. */
function reset() {
  scroller.setAttribute("aria-label", t("thread.label"));
  if (!state.messages.length) {
    nodes.clear();
    list.replaceChildren(emptyState());
    scroller.scrollTop = 0;
    return;
  }
  const wanted = state.messages.map((message) => {
    const known = nodes.get(message.id);
    if (known && known.message === message) return known.node;
    const node = messageNode(message);
    nodes.set(message.id, { message, node });
    return node;
  });
  for (const [id, { message }] of nodes) if (!state.messages.includes(message)) nodes.delete(id);
  state.messages.forEach((message, at) => wanted[at].classList.toggle("taken", Boolean(state.messages[at + 1]?.plain)));
  list.replaceChildren(...wanted);
  stuck = true;
  toEnd();
}

/** Update the answer that is being written. */
function live(id, data) {
  const node = nodes.get(id)?.node;
  if (!node) return;
  for (const area of ["reasoning", "content"]) {
    if (!data.sizes[area]) continue;
    const place = node.querySelector(`[data-area=${area}]`);
    sync(place, data.blocks[area], data.sizes[area]);
    if (area === "reasoning") place.closest("details").hidden = false;
  }
  node.classList.toggle("waiting", !data.sizes.content && !data.sizes.reasoning);
  node.querySelector(".usage").textContent = writingNote(data.usage);
  toEnd();
}

/** Replace the node of an answer that is complete. announced: read it to screen readers. */
function finish(message, announced) {
  const known = nodes.get(message.id);
  const node = messageNode(message);
  if (known) {
    // The text keeps its node where it can, so that a selection in it survives.
    const [old, fresh] = [known.node, node].map((one) => one.querySelector("[data-area=content]"));
    if (old.textContent.trim() === fresh.textContent.trim()) fresh.replaceWith(old);
    known.node.replaceWith(node);
  }
  nodes.set(message.id, { message, node });
  toEnd();
  if (announced) {
    const text = node.querySelector("[data-area=content]").innerText;
    announce(`${t("announce.done")} ${text.length > 600 ? `${text.slice(0, 600)}…` : text}`);
  }
}

/** Show an error below the thread. retry: called to try again, if that makes sense; or choices: [{text, act}]. */
function fail({ text, retry, choices }) {
  calm();
  const ways = choices ?? (retry ? [{ text: t("error.retry"), act: retry }] : []);
  const buttons = ways.map(({ text, act }) => el("button", { type: "button", class: "quiet", onclick: act, text }));
  list.append(el("div", { class: "failure", role: "alert" }, el("p", { text }), el("div", { class: "row start" }, buttons)));
  stuck = true;
  toEnd();
}

/** Remove the error. */
function calm() {
  list.querySelector(".failure")?.remove();
}

/** Edit the last message of the person's. */
function editLast() {
  const last = state.messages.findLast((message) => message.role === "user");
  const node = last && nodes.get(last.id)?.node;
  if (!node) return;
  node.scrollIntoView({ block: "nearest" });
  edit(node, last);
}
