// Popovers next to what was clicked, menus and dialogs. Escape or a click elsewhere closes them.
import { el, icon } from "./dom.js";

/** Open a popover at an element. Returns it; call `close()` on it to close it. */
export function popover(anchor, label, ...children) {
  const panel = el("div", { class: "popover", popover: "auto", role: "dialog", "aria-label": label }, children);
  document.body.append(panel);
  panel.addEventListener("toggle", (event) => {
    if (event.newState !== "closed") return;
    const within = panel.contains(document.activeElement) || document.activeElement === document.body;
    panel.remove();
    if (within && anchor.isConnected) anchor.focus();
  });
  panel.close = () => panel.hidePopover();
  panel.showPopover();
  place(panel, anchor);
  panel.querySelector("button:not(:disabled), a, input")?.focus();
  return panel;
}

function place(panel, anchor) {
  const at = anchor.getClientRects()[0] ?? anchor.getBoundingClientRect();
  const { width, height } = panel.getBoundingClientRect();
  const gap = 6;
  const below = at.bottom + gap + height < innerHeight || at.top < height + gap;
  panel.style.top = `${Math.max(gap, below ? Math.min(at.bottom + gap, innerHeight - height - gap) : at.top - gap - height)}px`;
  panel.style.left = `${Math.max(gap, Math.min(at.left, innerWidth - width - gap))}px`;
}

/** A menu of actions: [icon, text, action, props]. */
export function menu(anchor, label, actions) {
  const items = actions.map(([name, text, action, props = {}]) =>
    el("button", { type: "button", class: "item", ...props, onclick: () => (panel.close(), action()) }, icon(name), text),
  );
  const panel = popover(anchor, label, items);
  panel.classList.add("menu");
  panel.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    items.at((items.indexOf(document.activeElement) + step) % items.length).focus();
  });
  return panel;
}

/** A modal dialog. Returns it; it is removed when it closes. */
export function dialog(title, close, ...children) {
  const heading = el("h2", { text: title });
  const shut = el("button", { type: "button", class: "icon-button", "aria-label": close, title: close, onclick: () => window_.close() }, icon("close"));
  const window_ = el("dialog", { class: "dialog", "aria-label": title }, el("header", {}, heading, shut), children);
  window_.addEventListener("close", () => window_.remove());
  window_.addEventListener("click", (event) => event.target === window_ && window_.close());
  document.body.append(window_);
  window_.showModal();
  return window_;
}
