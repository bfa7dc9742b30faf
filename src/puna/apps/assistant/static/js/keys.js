// Keyboard shortcuts.
import { composing, el } from "/static/web/js/dom.js";
import * as chat from "./chat.js";
import { t } from "/static/web/js/i18n.js";
import { dialog } from "/static/web/js/popover.js";
import { emit, state } from "./state.js";

const KEYS = [
  ["Enter", "keys.send"],
  ["Shift Enter", "keys.line"],
  ["Ctrl K", "keys.new"],
  ["Esc", "keys.stop"],
  ["↑", "keys.edit"],
  ["/", "keys.search"],
  ["?", "keys.help"],
];

export function watchKeys() {
  document.addEventListener("keydown", (event) => {
    if (composing(event)) return;
    const typing = event.target.closest?.("input, textarea, select, dialog");
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      event.preventDefault();
      emit("view", "chat");
      chat.begin();
    } else if (event.key === "Escape" && state.writing && !document.querySelector("dialog[open], .popover")) {
      chat.stop();
    } else if (!typing && event.key === "?") {
      openKeys();
    } else if (!typing && event.key === "/") {
      event.preventDefault();
      document.querySelector(".search input").focus();
    }
  });
}

export function openKeys() {
  const rows = KEYS.map(([keys, what]) => [
    el("dt", {}, keys.split(" ").map((key) => el("kbd", { text: key }))),
    el("dd", { text: t(what) }),
  ]);
  dialog(t("keys.title"), t("close"), el("dl", { class: "keys" }, rows.flat()));
}
