// Theme and language: two selects that every product's settings show.
import { el } from "./dom.js";
import { LANGUAGES, chooseLanguage, t } from "./i18n.js";

/** Set the theme: light, dark, or (empty) the system's. */
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

/** The two selects. */
export function appearanceFields() {
  const themes = ["", "light", "dark"].map((name) => [name, t(`theme.${name || "auto"}`)]);
  const languages = [["", t("language.auto")], ...Object.entries(LANGUAGES)];
  const relabel = (tag) => (chooseLanguage(tag), location.reload());
  return el(
    "div",
    { class: "fields two" },
    select(t("theme.title"), themes, localStorage.getItem("puna.theme") ?? "", setTheme),
    select(t("language.title"), languages, localStorage.getItem("puna.language") ?? "", relabel),
  );
}
