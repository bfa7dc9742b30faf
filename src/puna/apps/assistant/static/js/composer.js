// The text field for messages.
import { composing, el, iconButton } from "/static/web/js/dom.js";
import { draftOf, keepDraft } from "/static/web/js/drafts.js";
import * as chat from "./chat.js";
import { sentence, t } from "/static/web/js/i18n.js";
import { card, emit, on, state } from "./state.js";
import { contextNote } from "./usage.js";

let field = null;
let place = null;

/** The composer. */
export function composerView() {
  field = el("textarea", { id: "prompt", rows: "1", dir: "auto", placeholder: placeholder(), "aria-label": t("composer.label") });
  const send = iconButton("send", t("send"), submit, { class: "icon-button send" });
  const stop = iconButton("stop", t("stop"), () => chat.stop(), { class: "icon-button send" });
  const note = el("p", { class: "composer-note" });
  const form = el("form", { class: "composer", onsubmit: (event) => (event.preventDefault(), submit()) }, field, send, stop);
  const update = () => {
    send.hidden = Boolean(state.writing);
    stop.hidden = !state.writing;
    send.disabled = !field.value.trim();
    stop.disabled = state.writing === true;
  };
  const refresh = () => {
    field.placeholder = placeholder();
    note.replaceChildren(el("span", { class: "hint", text: t(card()?.stage === "base" ? "composer.base" : "composer.note") }), contextNote() ?? "");
    update();
  };
  field.addEventListener("input", () => (grow(), update(), keepDraft(place, field.value)));
  field.addEventListener("keydown", onKey);
  on("writing", update);
  on("conversation", () => (changePlace(), refresh()));
  on("messages", refresh);
  on("finished", refresh);
  on("models", refresh);
  on("focus", () => field.focus());
  on("fill", put);
  on("submit", submit);
  on("unsent", (text) => field.value || put(text));
  refresh();
  return el("div", { class: "composer-place" }, form, note);
}

const placeholder = () => t(card()?.stage === "base" ? "composer.placeholder.base" : "composer.placeholder");

/** Every conversation has a draft of its own; one that is new takes the draft with it. */
function changePlace() {
  const next = `${state.user}.${state.conversation?.id ?? "new"}`;
  if (next === place) return;
  place = next;
  field.value = draftOf(place);
  field.dispatchEvent(new Event("input"));
}

function put(text) {
  field.value = text;
  field.dispatchEvent(new Event("input"));
  field.focus();
  field.setSelectionRange(text.length, text.length);
}

function grow() {
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, innerHeight * 0.4)}px`;
}

async function submit() {
  const text = field.value;
  if (!text.trim() || state.writing) return;
  field.value = "";
  field.dispatchEvent(new Event("input"));
  try {
    await chat.send(text);
  } catch (error) {
    put(text);
    emit("failure", { text: sentence(error), retry: null });
  }
}

function onKey(event) {
  if (composing(event)) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !field.value) {
    if (!state.messages.some((message) => message.role === "user")) return;
    event.preventDefault();
    emit("edit last");
  }
}
