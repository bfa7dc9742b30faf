// Sanitised HTML in the page: blocks that change while they are written, copy buttons on code, and links that do nothing
// until a person has seen where they lead.
import { copy } from "./copy.js";
import { el, icon, setCleaned } from "./dom.js";
import { t } from "./i18n.js";
import { popover } from "./popover.js";

/** Update the blocks that changed: [[index, html], …], of `size` in all. */
export function sync(place, changes, size) {
  for (const [at, html] of changes) {
    while (place.children.length <= at) place.append(el("div"));
    setCleaned(place.children[at], html);
    dress(place.children[at]);
  }
  while (place.children.length > size) place.lastChild.remove();
}

/** An element with a complete text. */
export function textNode(html, area) {
  const place = el("div", { class: "text", data: { area } });
  if (html) {
    const whole = el("div");
    setCleaned(whole, html);
    dress(whole);
    place.append(whole);
  }
  return place;
}

/** Add a copy button to every code block, and label what can be scrolled. */
export function dress(node) {
  for (const figure of node.querySelectorAll("figure.code")) {
    const button = el("button", { type: "button", class: "copy-code" }, icon("copy"), t("copy"));
    button.addEventListener("click", () => copy(figure.querySelector("code").textContent, button));
    figure.querySelector("figcaption").append(button);
    label(figure.querySelector("pre"), t("text.code"));
  }
  for (const table of node.querySelectorAll("div.table")) label(table, t("text.table"));
}

function label(node, text) {
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", text);
}

/** Copied formulas are their sources: what is drawn is no text that anything else reads. */
export function copySources(root) {
  root.addEventListener("copy", (event) => {
    const selection = getSelection();
    if (selection.isCollapsed || event.target.closest?.("input, textarea")) return;
    const range = selection.getRangeAt(0);
    const place = range.commonAncestorContainer;
    const within = (place.closest ? place : place.parentElement).closest(".maths");
    const part = el("div", { class: "hidden" }, range.cloneContents());
    if (!within && !part.querySelector(".maths")) return;
    event.preventDefault();
    event.clipboardData.setData("text/plain", within ? within.dataset.source : textOf(part));
  });
}

function textOf(part) {
  for (const node of part.querySelectorAll(".maths")) node.replaceWith(node.dataset.source);
  document.body.append(part); // only what is laid out has line breaks between its blocks
  const text = part.innerText;
  part.remove();
  return text;
}

/** Links and pictures in a model's text: a click shows the address; opening it is another click. */
export function watchAddresses(root) {
  const asked = (event) => {
    const node = event.target.closest?.(".text [data-url]");
    if (!node || (event.type === "keydown" && (event.key !== "Enter" || node.tagName === "BUTTON"))) return;
    event.preventDefault();
    showAddress(node);
  };
  root.addEventListener("click", asked);
  root.addEventListener("keydown", asked);
}

function showAddress(node) {
  let url;
  try {
    url = new URL(node.dataset.url);
  } catch {
    return;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return;
  const open = el("a", { class: "button", href: url.href, target: "_blank", rel: "noopener noreferrer nofollow", text: t("link.open") });
  popover(
    node,
    t(node.classList.contains("image") ? "link.image" : "link.leads"),
    el("p", { class: "note", text: t(node.classList.contains("image") ? "link.image" : "link.leads") }),
    el("p", { class: "address" }, el("bdi", { dir: "ltr", text: url.href })),
    el("p", { class: "row" }, open),
  );
}
