// The branch that is shown, from the first message to the last, and the answer that is being written at its end.
import { el } from "./dom.js";
import { t } from "./i18n.js";
import { emptyState } from "./empty.js";
import { messageNode } from "./message.js";
import { state } from "./state.js";
import { sync } from "./text.js";
import { writingNote } from "./usage.js";

let list = null;
let scroller = null;
let stuck = true;
const nodes = new Map();

/** The thread's place in the page. */
export function threadView() {
  list = el("div", { class: "thread", id: "thread" });
  scroller = el("div", { class: "scroller", tabindex: "0", role: "region", onscroll: onScroll }, list);
  return scroller;
}

function onScroll() {
  stuck = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
}

function toEnd() {
  if (stuck) scroller.scrollTop = scroller.scrollHeight;
}

/** Show state.messages; nodes of messages that stay the same stay too. */
export function reset() {
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
  list.replaceChildren(...wanted);
  stuck = true;
  toEnd();
}

/** What came of the answer that is being written. */
export function live(id, data) {
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

/** An answer is whole: the text that stands there stays, what can be done with it comes. */
export function finish(message) {
  const known = nodes.get(message.id);
  const node = messageNode(message);
  if (known) {
    // Whoever is selecting in the text goes on selecting.
    const [old, fresh] = [known.node, node].map((one) => one.querySelector("[data-area=content]"));
    if (old.textContent.trim() === fresh.textContent.trim()) fresh.replaceWith(old);
    known.node.replaceWith(node);
  }
  nodes.set(message.id, { message, node });
  toEnd();
}

/** Say under the thread what went wrong. retry: what trying again means. */
export function fail(text, retry) {
  calm();
  const button = retry && el("button", { type: "button", class: "quiet", onclick: retry, text: t("error.retry") });
  list.append(el("div", { class: "failure", role: "alert" }, el("p", { text }), button));
  stuck = true;
  toEnd();
}

/** Take what went wrong away. */
export function calm() {
  list.querySelector(".failure")?.remove();
}

/** An answer as a screen reader should say it. */
export const textOf = (id) => nodes.get(id)?.node.querySelector("[data-area=content]").innerText ?? "";

export const nodeOf = (id) => nodes.get(id)?.node;
