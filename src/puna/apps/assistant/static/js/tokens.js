// The tokens of an answer: how likely each one was, and its alternatives.
import { el } from "/static/web/js/dom.js";
import { get } from "/static/web/js/api.js";
import * as chat from "./chat.js";
import { percent, t } from "/static/web/js/i18n.js";
import { popover } from "/static/web/js/popover.js";
import { state } from "./state.js";

/** Show the answer as tokens, or as text again. */
export async function toggleTokens(node, message, button) {
  const old = node.querySelector(".tokens");
  const text = node.querySelector("[data-area=content]");
  button.setAttribute("aria-pressed", String(!old));
  text.hidden = !old;
  if (old) {
    old.remove();
    return;
  }
  const place = el("div", { class: "tokens" });
  text.after(place);
  const { tokens } = await get(`/app/conversations/${state.conversation.id}/messages/${message.id}/tokens`);
  if (!tokens.length) {
    place.append(el("p", { class: "note", text: t("tokens.none") }));
    return;
  }
  const spans = tokens.map((token, at) => tokenNode(token, at, message));
  spans[0].tabIndex = 0;
  const run = el("p", { class: "token-run", role: "group", "aria-label": t("tokens.label") }, spans);
  run.addEventListener("keydown", (event) => walk(event, spans));
  place.append(el("p", { class: "note" }, `${t("tokens.note")} `, legend()), run);
}

// How sure the model was, in five steps.
const STEPS = [0.9, 0.6, 0.3, 0.1];
const step = (probability) => STEPS.filter((bound) => probability < bound).length;

function legend() {
  const names = [`> ${percent(0.9)}`, `> ${percent(0.6)}`, `> ${percent(0.3)}`, `> ${percent(0.1)}`, t("tokens.less")];
  return el("span", { class: "legend" }, names.map((name, at) => el("span", { class: `swatch sure${at}`, text: name })));
}

function tokenNode(token, at, message) {
  const probability = Math.exp(token.logprob);
  const shown = token.text.replaceAll("\n", "↵\n").replaceAll("\t", "→\t");
  const label = `${spoken(token.text)}, ${percent(probability)}`;
  const node = el("span", { class: `token sure${step(probability)}`, role: "button", tabindex: "-1", "aria-label": label, text: shown });
  const open = () => alternatives(node, token, at, message);
  node.addEventListener("click", open);
  node.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), open()));
  return node;
}

const spoken = (text) => (text.trim() ? text : t(text.includes("\n") ? "tokens.newline" : "tokens.space"));

function walk(event, spans) {
  const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const at = spans.indexOf(document.activeElement);
  if (!move || at < 0) return;
  event.preventDefault();
  const next = spans[Math.max(0, Math.min(spans.length - 1, at + move))];
  spans[at].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function alternatives(node, token, at, message) {
  const rows = token.alternatives.map((other, choice) => {
    const probability = Math.exp(other.logprob);
    const bar = el("span", { class: "bar", "aria-hidden": "true" }, el("i"));
    bar.firstChild.style.width = `${Math.max(1, probability * 100)}%`;
    const props = { type: "button", class: "alternative", disabled: other.ends || choice === token.chosen };
    if (choice === token.chosen) props["aria-current"] = "true";
    const take = () => (panel.close(), chat.continueAnswer(message.id, { position: at, alternative: choice }));
    const text = el("code", { text: other.ends ? t("tokens.end") : visible(other.text) });
    return el("li", {}, el("button", { ...props, onclick: take }, text, bar, el("span", { class: "share", text: percent(probability) })));
  });
  const panel = popover(
    node,
    t("tokens.alternatives"),
    el("p", { class: "note", text: t(rows.length ? "tokens.choose" : "tokens.alone", { p: percent(Math.exp(token.logprob)) }) }),
    el("ol", { class: "alternatives" }, rows),
  );
}

const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "→") || "∅";
