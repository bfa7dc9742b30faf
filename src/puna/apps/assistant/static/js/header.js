// The header above the thread: title, model, and the button for settings.
import { el, icon, iconButton } from "/static/web/js/dom.js";
import { openSettings } from "./settings.js";
import { openDrawer } from "./sidebar.js";
import { number, t } from "/static/web/js/i18n.js";
import { card, on, state } from "./state.js";

export function headerView() {
  const title = el("h1");
  const model = el("button", { type: "button", class: "model", "aria-haspopup": "dialog", onclick: openSettings });
  const update = () => {
    title.textContent = state.conversation?.title || t("new");
    document.title = state.conversation?.title ? `${state.conversation.title} · Puna` : "Puna";
    const now = card();
    const name = el("span", { class: "model-name", text: now?.id ?? "" });
    const kind = now?.stage === "base" ? el("span", { class: "badge", text: t("model.base") }) : null;
    model.replaceChildren(...[name, kind, icon("sliders")].filter(Boolean));
    model.setAttribute("aria-label", t("settings.open", { model: now?.id ?? "" }));
    const size = now?.max_model_len ? t("model.context", { n: number(now.max_model_len) }) : "";
    model.title = [t("settings.title"), size].filter(Boolean).join("\n");
  };
  on("conversation", update);
  on("title", update);
  update();
  return el(
    "header",
    { class: "head" },
    iconButton("menu", t("list.open"), openDrawer, { class: "icon-button drawer-open" }),
    title,
    model,
  );
}
