// Signing in, with a name and password or with a key. The page keeps neither: the server sets a cookie that scripts
// cannot read.
import { address } from "./address.js";
import { el } from "./dom.js";
import { get, post } from "./api.js";
import { sentence, t } from "./i18n.js";

/** Ask until signing in succeeds. Replaces what is in #app. */
export async function signIn() {
  const ways = await get("/app/sign-in");
  return new Promise((resolve) => show(ways.password ? "password" : "key", ways, resolve));
}

function show(way, ways, resolve) {
  const name = el("input", { class: "field", id: "name", autocomplete: "username", required: true, maxlength: "64" });
  const secret = el("input", {
    class: "field",
    id: way === "key" ? "key" : "password",
    type: "password",
    autocomplete: "current-password",
    required: true,
  });
  const problem = el("p", { class: "problem", role: "alert" });
  const enter = async (event) => {
    event.preventDefault();
    try {
      await post("/app/login", way === "key" ? { key: secret.value } : { name: name.value, password: secret.value });
      resolve();
    } catch (error) {
      problem.textContent = sentence(error);
      secret.select();
    }
  };
  const other = way === "key" ? "password" : "key";
  const change =
    ways.password &&
    el("button", { type: "button", class: "link-button", onclick: () => show(other, ways, resolve), text: t(`login.with.${other}`) });
  gate(
    el(
      "form",
      { class: "form", onsubmit: enter },
      el("h1", { text: t("login.title") }),
      el("p", { class: "note", text: t(`login.note.${way}`) }),
      way === "password" && labelled(t("login.name"), name),
      labelled(t(way === "key" ? "login.key" : "login.password"), secret),
      problem,
      el("button", { type: "submit", class: "button", text: t("login.enter") }),
      change,
    ),
  );
  (way === "password" ? name : secret).focus();
}

/** A field with its label. */
export function labelled(text, field) {
  return el("label", { class: "labelled" }, el("span", { text }), field);
}

/** Show a small form alone in the middle of the page. */
export function gate(form) {
  const logo = el("img", { src: address("/static/web/icons/icon.svg"), alt: "", width: "44", height: "44" });
  document.getElementById("app").replaceChildren(el("main", { class: "gate" }, el("div", { class: "gate-box" }, logo, form)));
}
