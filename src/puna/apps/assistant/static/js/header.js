// The header above the thread: title, model, and the button for settings.
import { el, iconButton } from "/static/web/js/dom.js";
import * as chat from "./chat.js";
import { fillModels, openSettings } from "./settings.js";
import { openDrawer } from "./sidebar.js";
import { number, sentence, t } from "/static/web/js/i18n.js";
import { loadModels } from "./models.js";
import { card, chosen, emit, on, state } from "./state.js";

async function pick(picker) {
  try {
    await chat.change({ model: picker.value });
    emit("calm");
  } catch (error) {
    emit("failure", { text: sentence(error), retry: null });
    await loadModels();
  }
}

export function headerView() {
  const title = el("h1", { dir: "auto" });
  const picker = el("select", { class: "picker", "aria-label": t("settings.model"), onchange: () => pick(picker) });
  const kind = el("span", { class: "badge" });
  const model = iconButton("sliders", "", openSettings, { class: "icon-button model", "aria-haspopup": "dialog" });
  const update = () => {
    title.textContent = state.conversation?.title || t("new");
    document.title = state.conversation?.title ? `${state.conversation.title} · Puna` : "Puna";
    const now = card();
    fillModels(picker, chosen().model);
    picker.title = now?.max_model_len ? t("model.context", { n: number(now.max_model_len) }) : "";
    kind.hidden = now?.stage !== "base";
    kind.textContent = kind.hidden ? "" : t("model.base");
    model.setAttribute("aria-label", t("settings.open", { model: now?.id ?? chosen().model }));
    model.title = t("settings.title");
  };
  on("conversation", update);
  on("title", update);
  on("models", update);
  update();
  return el(
    "header",
    { class: "head" },
    iconButton("menu", t("list.open"), openDrawer, { class: "icon-button drawer-open" }),
    title,
    el("div", { class: "head-model" }, kind, picker, model),
  );
}
