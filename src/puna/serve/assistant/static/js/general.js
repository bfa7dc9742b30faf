// What is the same for all conversations: colours, language, taking everything away, keys, signing out.
import { el } from "./dom.js";
import { post } from "./api.js";
import { LANGUAGES, chooseLanguage, t } from "./i18n.js";
import { openKeys } from "./keys.js";
import { dialog } from "./popover.js";
import { download } from "./sidebar.js";
import { state } from "./state.js";

/** Set the colours: light, dark, or (empty) as the system has them. */
export function setTheme(theme) {
  if (theme) {
    localStorage.setItem("puna.theme", theme);
    document.documentElement.dataset.theme = theme;
  } else {
    localStorage.removeItem("puna.theme");
    delete document.documentElement.dataset.theme;
  }
}

function select(label, options, current, change) {
  const nodes = options.map(([value, text]) => el("option", { value, text, selected: value === current }));
  const input = el("select", { class: "field", onchange: (event) => change(event.target.value) }, nodes);
  return el("label", { class: "labelled" }, el("span", { text: label }), input);
}

export function openGeneral() {
  const themes = ["", "light", "dark"].map((name) => [name, t(`theme.${name || "auto"}`)]);
  const languages = [["", t("language.auto")], ...Object.entries(LANGUAGES)];
  const relabel = (tag) => (chooseLanguage(tag), location.reload());
  const leave = async () => (await post("/app/logout"), location.reload());
  const window_ = dialog(
    t("general.title"),
    t("close"),
    el(
      "div",
      { class: "fields two" },
      select(t("theme.title"), themes, localStorage.getItem("puna.theme") ?? "", setTheme),
      select(t("language.title"), languages, localStorage.getItem("puna.language") ?? "", relabel),
    ),
    el("h3", { text: t("export.title") }),
    el("p", { class: "note", text: t("export.note") }),
    el(
      "div",
      { class: "row start" },
      el("button", { type: "button", class: "quiet", onclick: () => download("/app/export"), text: t("export.all") }),
      el("button", { type: "button", class: "quiet", onclick: () => download("/app/preferences"), text: t("export.preferences") }),
    ),
    el(
      "div",
      { class: "row start foot" },
      el("button", { type: "button", class: "quiet", onclick: () => (window_.close(), openKeys()), text: t("keys.title") }),
      state.signedIn && el("button", { type: "button", class: "quiet", onclick: leave, text: t("signout", { user: state.user }) }),
    ),
  );
}
