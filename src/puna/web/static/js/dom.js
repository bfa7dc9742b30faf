// Creates elements. Text is inserted as text; the only HTML is what the server has sanitised (puna/web/markdown.py).

import { address } from "./address.js";

const policy = window.trustedTypes
  ? window.trustedTypes.createPolicy("puna", {
      createHTML: (html) => html,
      createScriptURL: (url) => {
        if (url !== address("/sw.js")) throw new TypeError(`not a script of this server: ${url}`);
        return url;
      },
    })
  : { createHTML: (html) => html, createScriptURL: (url) => url };

export const workerAddress = () => policy.createScriptURL(address("/sw.js"));

/** Insert HTML that the server has sanitised. */
export function setCleaned(node, html) {
  node.innerHTML = policy.createHTML(html);
}

/** An element. props: attributes, or `on…` listeners, `text`, `class`, `data`. children: nodes, texts, or null. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "text") node.textContent = value;
    else if (name === "class") node.className = value;
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const PATHS = {
  new: "M12 5v14M5 12h14",
  menu: "M4 7h16M4 12h16M4 17h16",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14M16 16l4 4",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  check: "M5 12.5l4.5 4.5L19 7.5",
  again: "M19 12a7 7 0 1 1-2.1-5M19 4v4h-4",
  edit: "M4 20l1-4L16.5 4.5l3 3L8 19zM14 7l3 3",
  up: "M7 11l4-7c1.5 0 2.5 1 2 3l-.6 3H18c1.3 0 2 1 1.700 2.200l-1.300 5.600c-.2 1-.9 1.700-2 1.700H7zM7 11H4v8.500h3",
  down: "M17 13l-4 7c-1.500 0-2.500-1-2-3l.6-3H6c-1.300 0-2-1-1.700-2.200l1.300-5.600c.2-1 .9-1.700 2-1.700H17zM17 13h3V4.500h-3",
  pen: "M4 20h4M13 6l5 5L9 20H4v-5z",
  tokens: "M4 6h6v5H4zM13 6h7v5h-7zM4 14h9v5H4zM16 14h4v5h-4z",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  close: "M6 6l12 12M18 6L6 18",
  compare: "M4 5h7v14H4zM14 5h6v14h-6z",
  gear: "M12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6M12 3v3M12 18v3M3 12h3M18 12h3M5.600 5.600l2.100 2.100M16.300 16.300l2.100 2.100M5.600 18.400l2.100-2.100M16.300 7.700l2.100-2.100",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14",
  forward: "M5 6l7 6-7 6zM13 6l7 6-7 6z",
  person: "M12 4a4 4 0 1 0 0 8 4 4 0 0 0 0-8M4.500 20c.6-4 3.600-6 7.500-6s6.900 2 7.500 6",
  key: "M15 4a5 5 0 1 0 0 10 5 5 0 0 0 0-10M11.200 12.200 4 19.500V22h3v-2h2v-2h2",
  leave: "M14 4H6v16h8M11 12h9M17 8l4 4-4 4",
};

/** An icon: strokes in the text colour, hidden from screen readers. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** A button with only an icon; its label is for screen readers and the tooltip. */
export function iconButton(name, label, onclick, props = {}) {
  return el("button", { type: "button", class: "icon-button", title: label, "aria-label": label, onclick, ...props }, icon(name));
}

/** Announce a text to screen readers. */
export function announce(text) {
  const place = document.getElementById("announce");
  place.textContent = "";
  setTimeout(() => (place.textContent = text), 50);
}

/** Whether a key goes to an input method: Enter then chooses a character. Safari tells by 229 alone (UI Events, 7.3). */
export const composing = (event) => event.isComposing || event.keyCode === 229;

/** Have the browser save what is at an address of this server. */
export function download(path) {
  el("a", { href: address(path), download: "" }).click();
}
