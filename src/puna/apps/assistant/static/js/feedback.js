// Corrections: what the answer should have been, stored as a preference.
import { announce, composing, el } from "/static/web/js/dom.js";
import { keepDraft, keepField } from "/static/web/js/drafts.js";
import { post } from "/static/web/js/api.js";
import { t } from "/static/web/js/i18n.js";

/** Open a form below an answer in which to write a better one. */
export function correct(node, message) {
  if (node.querySelector("form")) return;
  const start = message.feedback?.correction ?? message.content;
  const rows = String(Math.min(16, start.split("\n").length + 2));
  const field = el("textarea", { class: "field", rows, dir: "auto", "aria-label": t("message.correct"), value: start });
  const button = node.querySelector("[data-act=correct]");
  const place = `correct.${message.id}`;
  const close = () => (keepDraft(place, ""), form.remove(), button.focus());
  const save = async (event) => {
    event.preventDefault();
    const correction = field.value.trim() === message.content.trim() ? null : field.value;
    message.feedback = await post("/app/feedback", { message: message.id, rating: message.feedback?.rating ?? null, correction });
    button.setAttribute("aria-pressed", String(Boolean(message.feedback.correction)));
    announce(t("correct.saved"));
    close();
  };
  const form = el(
    "form",
    { class: "inline-form", onsubmit: save },
    el("p", { class: "note", text: t("correct.note") }),
    field,
    el(
      "div",
      { class: "row" },
      el("button", { type: "button", class: "quiet", onclick: close, text: t("cancel") }),
      el("button", { type: "submit", class: "button", text: t("save") }),
    ),
  );
  field.addEventListener("keydown", (event) => event.key === "Escape" && !composing(event) && (event.stopPropagation(), close()));
  node.append(form);
  keepField(field, place);
  field.focus();
}
