// Copying a text to the clipboard, also where browsers have no Clipboard API: over http from another machine.
import { announce, el, icon } from "./dom.js";
import { t } from "./i18n.js";
import { popover } from "./popover.js";

/** Copy a text, and show on the button that it was copied; where no way works, show the text selected. */
export async function copy(text, button) {
  if (!(await toClipboard(text))) {
    showSelected(text, button);
    return;
  }
  const before = [...button.childNodes];
  button.replaceChildren(icon("check"), ...before.filter((node) => node.nodeType === Node.TEXT_NODE));
  announce(t("copied"));
  setTimeout(() => button.replaceChildren(...before), 1400);
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return withCommand(text);
  }
}

// The command that browsers had before the Clipboard API. It copies what is selected.
function withCommand(text) {
  const active = document.activeElement;
  const field = el("textarea", { class: "hidden", readonly: true, "aria-hidden": "true", tabindex: "-1", value: text });
  (active?.closest("dialog, .popover") ?? document.body).append(field); // nothing outside an open dialog takes the focus
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  active?.focus({ preventScroll: true });
  return copied;
}

function showSelected(text, button) {
  const field = el("textarea", { class: "field", readonly: true, rows: "5", "aria-label": t("copy"), value: text });
  popover(button, t("copy.failed"), el("p", { class: "note", text: t("copy.failed") }), field);
  field.select();
}
