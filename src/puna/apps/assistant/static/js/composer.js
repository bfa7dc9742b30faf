// The text field for messages.
import { el, iconButton } from "/static/web/js/dom.js";
import * as chat from "./chat.js";
import { sentence, t } from "/static/web/js/i18n.js";
import { card, emit, on, state } from "./state.js";

let field = null;

/** The composer. */
export function composerView() {
  field = el("textarea", { id: "prompt", rows: "1", placeholder: placeholder(), "aria-label": t("composer.label") });
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
    note.textContent = card()?.stage === "base" ? t("composer.base") : t("composer.note");
    update();
  };
  field.addEventListener("input", () => (grow(), update()));
  field.addEventListener("keydown", onKey);
  on("writing", update);
  on("conversation", refresh);
  on("focus", () => field.focus());
  on("fill", (text) => (put(text), update()));
  on("unsent", (text) => !field.value && (put(text), update()));
  refresh();
  return el("div", { class: "composer-place" }, form, note);
}

const placeholder = () => t(card()?.stage === "base" ? "composer.placeholder.base" : "composer.placeholder");

function put(text) {
  field.value = text;
  grow();
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
  grow();
  field.dispatchEvent(new Event("input"));
  try {
    await chat.send(text);
  } catch (error) {
    put(text);
    emit("failure", { text: sentence(error), retry: null });
  }
}

function onKey(event) {
  // While an input method is composing, Enter chooses a character.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !field.value) {
    if (!state.messages.some((message) => message.role === "user")) return;
    event.preventDefault();
    emit("edit last");
  }
}
