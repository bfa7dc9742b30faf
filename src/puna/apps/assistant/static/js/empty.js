// A conversation without messages.
import { el } from "/static/web/js/dom.js";
import { t } from "/static/web/js/i18n.js";
import { card, emit } from "./state.js";

/** A greeting and a few prompts to start from; a base model is introduced as one. */
export function emptyState() {
  const model = card();
  const base = model?.stage === "base";
  const starters = [1, 2, 3, 4].map((at) => {
    const text = t(`${base ? "start.base" : "start.chat"}.${at}`);
    return el("li", {}, el("button", { type: "button", class: "starter", onclick: () => emit("fill", text), text }));
  });
  return el(
    "section",
    { class: "empty" },
    el("h2", { text: t(base ? "empty.base" : "empty.chat") }),
    el("p", { class: "lead", text: t(base ? "empty.base.lead" : "empty.chat.lead", { model: model?.id ?? "" }) }),
    el("ul", { class: "starters" }, starters),
  );
}
