// Signing in with a key. The page keeps no key: the server answers with a cookie that scripts cannot read.
import { el } from "./dom.js";
import { post } from "./api.js";
import { sentence, t } from "./i18n.js";

/** Ask for a key until one is right; then go on. */
export function askForKey() {
  return new Promise((resolve) => {
    const field = el("input", { class: "field", id: "key", type: "password", autocomplete: "current-password", required: true });
    const problem = el("p", { class: "problem", role: "alert" });
    const enter = async (event) => {
      event.preventDefault();
      try {
        await post("/app/login", { key: field.value });
        page.remove();
        resolve();
      } catch (error) {
        problem.textContent = sentence(error);
        field.select();
      }
    };
    const page = el(
      "main",
      { class: "login" },
      el(
        "form",
        { class: "form", onsubmit: enter },
        el("img", { src: "/static/icons/icon.svg", alt: "", width: "44", height: "44" }),
        el("h1", { text: t("login.title") }),
        el("p", { class: "note", text: t("login.note") }),
        el("label", { class: "labelled" }, el("span", { text: t("login.key") }), field),
        problem,
        el("button", { type: "submit", class: "button", text: t("login.enter") }),
      ),
    );
    document.getElementById("app").replaceChildren(page);
    field.focus();
  });
}
