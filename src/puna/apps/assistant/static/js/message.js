// One message, and the buttons for what can be done with it.
import { copy } from "/static/web/js/copy.js";
import { composing, el, icon, iconButton } from "/static/web/js/dom.js";
import { keepDraft, keepField } from "/static/web/js/drafts.js";
import { post } from "/static/web/js/api.js";
import * as chat from "./chat.js";
import { correct } from "./feedback.js";
import { t } from "/static/web/js/i18n.js";
import { emit, state } from "./state.js";
import { textNode } from "/static/web/js/rich_text.js";
import { toggleTokens } from "./tokens.js";
import { details, note, writingNote } from "./usage.js";

/** The node of a message. */
export function messageNode(message) {
  const node = message.role === "user" ? mine(message) : answer(message);
  node.dataset.id = message.id;
  return node;
}

function mine(message) {
  const said = el("div", { class: "said", text: message.content });
  const node = el("article", { class: "message user" }, el("h2", { class: "hidden", text: t("message.you") }), said);
  node.append(
    tools(
      message,
      iconButton("copy", t("message.copy"), (event) => copy(message.content, event.currentTarget)),
      iconButton("edit", t("message.edit"), () => edit(node, message), { data: { act: "edit" } }),
    ),
  );
  return node;
}

function answer(message) {
  const prompt = message.plain ? state.messages.find((other) => other.id === message.parent) : null;
  const reasoning = el("details", { class: "reasoning" }, el("summary", { text: t("message.reasoning") }), textNode(message.reasoning_html, "reasoning"));
  reasoning.hidden = !message.reasoning_html;
  const node = el(
    "article",
    { class: `message answer${message.writing ? " writing waiting" : ""}` },
    el("h2", { class: "by", text: message.model ?? t("message.model.unknown") }),
    reasoning,
    prompt ? whole(prompt, message) : textNode(message.html, "content"),
    ending(message),
  );
  if (message.writing) node.append(el("div", { class: "tools" }, el("span", { class: "usage", text: writingNote(message.usage) })));
  else node.append(answerTools(node, message, prompt));
  return node;
}

/** A base model's text in one piece: what a person began, and how the model went on. */
function whole(prompt, message) {
  return el("div", { class: "whole", dir: "auto" }, el("span", { class: "begun", text: prompt.content }), textNode(message.html, "content"));
}

function answerTools(node, message, prompt) {
  const cut = ["length", "stopped", "interrupted", "error"].includes(message.finish_reason);
  const text = (prompt?.content ?? "") + message.content;
  return tools(
    message,
    prompt && branches(prompt),
    iconButton("copy", t("message.copy"), (event) => copy(text, event.currentTarget)),
    prompt && iconButton("edit", t("message.edit"), () => emit("edit", prompt), { data: { act: "edit" } }),
    iconButton("again", t("message.again"), () => chat.regenerate(message.id), { data: { act: "again" } }),
    cut && iconButton("forward", t("message.goOn"), () => chat.continueAnswer(message.id), { data: { act: "goOn" } }),
    thumb(message, "up", 1),
    thumb(message, "down", -1),
    iconButton("pen", t("message.correct"), () => correct(node, message), {
      data: { act: "correct" },
      "aria-pressed": String(Boolean(message.feedback?.correction)),
    }),
    iconButton("tokens", t("tokens.show"), (event) => toggleTokens(node, message, event.currentTarget), {
      data: { act: "tokens" },
      "aria-pressed": "false",
    }),
    el("span", { class: "usage", title: details(message), text: note(message.usage) }),
  );
}

/** Why an answer ended, unless the model ended it. */
function ending(message) {
  const known = { length: message.plain ? null : "ending.length", stopped: "ending.stopped", interrupted: "ending.interrupted" };
  const key = known[message.finish_reason];
  return key ? el("p", { class: "ending", text: t(key) }) : null;
}

function thumb(message, name, rating) {
  const pressed = () => message.feedback?.rating === rating;
  const rate = async (event) => {
    const button = event.currentTarget;
    const correction = message.feedback?.correction ?? null;
    message.feedback = await post("/app/feedback", { message: message.id, rating: pressed() ? null : rating, correction });
    for (const other of button.parentNode.querySelectorAll("[data-rating]"))
      other.setAttribute("aria-pressed", String(message.feedback.rating === Number(other.dataset.rating)));
  };
  const props = { "aria-pressed": String(pressed()), data: { rating } };
  return iconButton(name, t(`message.${name}`), rate, props);
}

function tools(message, ...items) {
  return el("div", { class: "tools" }, branches(message), ...items);
}

/** ‹ 2 / 3 ›: the other versions of a message. */
function branches(message) {
  const all = message.siblings ?? [];
  if (all.length < 2) return null;
  const at = all.indexOf(message.id);
  const go = (to) => () => chat.branch(all[to]);
  return el(
    "span",
    { class: "branches", role: "group", "aria-label": t("branch.label", { at: at + 1, of: all.length }) },
    iconButton("left", t("branch.before"), go(at - 1), { disabled: at === 0 }),
    el("span", { class: "count", text: `${at + 1}/${all.length}` }),
    iconButton("right", t("branch.after"), go(at + 1), { disabled: at === all.length - 1 }),
  );
}

/** Edit a message: it is sent again, as another version. */
export function edit(node, message) {
  if (state.writing || node.querySelector("form")) return;
  const field = el("textarea", { class: "field", rows: "3", dir: "auto", "aria-label": t("message.edit"), value: message.content });
  const place = `edit.${message.id}`;
  const close = () => (keepDraft(place, ""), form.remove(), node.classList.remove("editing"), node.querySelector("[data-act=edit]").focus());
  const send = () => {
    if (field.value.trim()) (keepDraft(place, ""), chat.send(field.value, message.parent));
  };
  const form = el(
    "form",
    { class: "inline-form", onsubmit: (event) => (event.preventDefault(), send()) },
    field,
    el("p", { class: "note", text: t("edit.note") }),
    el(
      "div",
      { class: "row" },
      el("button", { type: "button", class: "quiet", onclick: close, text: t("cancel") }),
      el("button", { type: "submit", class: "button" }, icon("send"), t("send")),
    ),
  );
  field.addEventListener("keydown", (event) => {
    if (composing(event)) return;
    if (event.key === "Escape") (event.stopPropagation(), close());
    if (event.key === "Enter" && !event.shiftKey) (event.preventDefault(), send());
  });
  node.append(form);
  node.classList.add("editing");
  keepField(field, place);
  field.focus();
  field.setSelectionRange(field.value.length, field.value.length);
}
