// Settings that are the same for all conversations: theme, language, exports, keyboard shortcuts, the account.
import { address } from "/static/web/js/address.js";
import { appearanceFields } from "/static/web/js/appearance.js";
import { download, el } from "/static/web/js/dom.js";
import { forgetDrafts } from "/static/web/js/drafts.js";
import { post } from "/static/web/js/api.js";
import { t } from "/static/web/js/i18n.js";
import { dialog } from "/static/web/js/popover.js";
import { importField } from "./import.js";
import { openKeys } from "./keys.js";
import { state } from "./state.js";

export function openGeneral() {
  const leave = async () => (await post("/app/logout"), forgetDrafts(), location.reload());
  const window_ = dialog(
    t("general.title"),
    t("close"),
    appearanceFields(),
    el("h3", { text: t("export.title") }),
    el("p", { class: "note", text: t("export.note") }),
    el(
      "div",
      { class: "row start" },
      el("button", { type: "button", class: "quiet", onclick: () => download("/app/export"), text: t("export.all") }),
      el("button", { type: "button", class: "quiet", onclick: () => download("/app/preferences"), text: t("export.preferences") }),
    ),
    importField(),
    el(
      "div",
      { class: "row start foot" },
      el("button", { type: "button", class: "quiet", onclick: () => (window_.close(), openKeys()), text: t("keys.title") }),
      el("a", { class: "quiet", href: address("/account"), text: t("account.title") }),
      state.signedIn && el("button", { type: "button", class: "quiet", onclick: leave, text: t("signout", { user: state.user }) }),
    ),
  );
}
