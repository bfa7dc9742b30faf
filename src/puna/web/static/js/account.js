// The page of accounts: accepting an invitation, one's own account, and for owners everyone's.
import { address } from "./address.js";
import { ownSections } from "./account_own.js";
import { peopleSections } from "./account_people.js";
import { get, post } from "./api.js";
import { appearanceFields } from "./appearance.js";
import { el, icon } from "./dom.js";
import { forgetDrafts } from "./drafts.js";
import { loadLanguage, sentence, t } from "./i18n.js";
import { gate, labelled, signIn } from "./sign_in.js";

const MIN_PASSWORD = "8";

async function invitation() {
  // The token is in the fragment, which browsers send to no server and to no other page.
  const token = location.hash.slice(1);
  let invited;
  try {
    invited = await post("/app/invitations/look-up", { token });
  } catch (error) {
    const home = el("a", { class: "button", href: address("/"), text: t("account.home") });
    gate(el("div", { class: "form" }, el("h1", { text: t("invitation.bad") }), el("p", { class: "note", role: "alert", text: sentence(error) }), home));
    return;
  }
  const name = el("input", { class: "field", id: "name", autocomplete: "username", required: true, maxlength: "64", value: invited.name ?? "", readonly: Boolean(invited.name) });
  const password = el("input", { class: "field", id: "password", type: "password", autocomplete: "new-password", required: true, minlength: MIN_PASSWORD });
  const problem = el("p", { class: "problem", role: "alert" });
  const accept = async (event) => {
    event.preventDefault();
    try {
      await post("/app/invitations/accept", { token, name: name.value, password: password.value });
      location.replace(address("/"));
    } catch (error) {
      problem.textContent = sentence(error);
    }
  };
  gate(
    el(
      "form",
      { class: "form", onsubmit: accept },
      el("h1", { text: t(invited.name ? "invitation.back" : "invitation.title") }),
      el("p", { class: "note", text: t(invited.name ? "invitation.back.note" : `invitation.note.${invited.role}`) }),
      labelled(t("login.name"), name),
      labelled(t(invited.name ? "account.password.new" : "login.password"), password),
      el("p", { class: "note", text: t("account.password.note") }),
      problem,
      el("button", { type: "submit", class: "button", text: t(invited.name ? "save" : "invitation.accept") }),
    ),
  );
  (invited.name ? password : name).focus();
}

async function account() {
  let me;
  for (;;) {
    try {
      me = await get("/app/account");
      break;
    } catch (error) {
      if (error.status !== 401) throw error;
      await signIn();
    }
  }
  document.title = `${t("account.title")} · Puna`;
  window.addEventListener("puna:signin", () => location.reload(), { once: true });
  const leave = async () => (await post("/app/logout"), forgetDrafts(), location.replace(address("/")));
  const sections = me.accounts ? [...(await ownSections(me)), ...(me.role === "owner" ? await peopleSections(me) : [])] : [];
  document.getElementById("app").replaceChildren(
    el(
      "div",
      { class: "page" },
      el(
        "header",
        { class: "page-head" },
        el("a", { class: "brand", href: address("/") }, el("img", { src: address("/static/web/icons/icon.svg"), alt: "", width: "26", height: "26" }), "Puna"),
        el("a", { class: "quiet", href: address("/") }, icon("left"), t("account.home")),
      ),
      el(
        "main",
        { class: "page-body" },
        el(
          "div",
          { class: "page-title" },
          el("h1", { text: me.accounts ? me.name : t("account.title") }),
          el("span", { class: "badge", text: t(`role.${me.role}`) }),
          me.accounts && el("button", { type: "button", class: "quiet push", onclick: leave }, icon("leave"), t("account.leave")),
        ),
        !me.accounts && el("p", { class: "note", text: t("account.open") }),
        ...sections,
        el("section", { class: "panel" }, el("h2", { text: t("account.appearance") }), appearanceFields()),
      ),
    ),
  );
}

async function start() {
  await loadLanguage();
  try {
    await (location.pathname === address("/account/invitation") ? invitation() : account());
  } catch (error) {
    gate(el("div", { class: "form" }, el("p", { role: "alert", text: sentence(error) })));
  }
}

start();
