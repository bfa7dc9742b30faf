// The list of conversations: searching, renaming, exporting, deleting.
import { address } from "/static/web/js/address.js";
import { announce, composing, download, el, icon, iconButton } from "/static/web/js/dom.js";
import { get, patch, remove } from "/static/web/js/api.js";
import * as chat from "./chat.js";
import { t } from "/static/web/js/i18n.js";
import { dialog, menu } from "/static/web/js/popover.js";
import { openGeneral } from "./general.js";
import { emit, on, state } from "./state.js";

let list = null;
let search = null;
let side = null;
let timer = null;
let asked = 0;

/** The sidebar. */
export function sidebarView() {
  search = el("input", { type: "search", dir: "auto", placeholder: t("list.search"), "aria-label": t("list.search"), oninput: () => later() });
  list = el("div", { class: "list" });
  side = el(
    "nav",
    { class: "side", id: "side", "aria-label": t("list.label") },
    el(
      "div",
      { class: "side-head" },
      el("span", { class: "brand" }, el("img", { src: address("/static/web/icons/icon.svg"), alt: "", width: "26", height: "26" }), "Puna"),
      iconButton("close", t("list.close"), closeDrawer, { class: "icon-button drawer-close" }),
    ),
    el("button", { type: "button", class: "new", title: `${t("new")} (Ctrl K)`, onclick: () => (closeDrawer(), showChat(), chat.begin()) }, icon("new"), t("new")),
    el("label", { class: "search" }, icon("search"), search),
    list,
    el(
      "div",
      { class: "side-foot" },
      el("a", { class: "foot-link", href: "#/compare", onclick: closeDrawer }, icon("compare"), t("compare.title")),
      el("button", { type: "button", class: "foot-link", onclick: openGeneral }, icon("gear"), t("general.title")),
    ),
  );
  on("list", () => later(0));
  on("conversation", mark);
  on("view", mark);
  return side;
}

const showChat = () => location.hash === "#/compare" && emit("view", "chat");

export function openDrawer() {
  side.classList.add("open");
  document.body.classList.add("drawer");
  side.querySelector(".drawer-close").focus();
}

export function closeDrawer() {
  side.classList.remove("open");
  document.body.classList.remove("drawer");
}

function later(wait = 180) {
  clearTimeout(timer);
  timer = setTimeout(load, wait);
}

/** Load the conversations that match the search, and show them. */
export async function load() {
  const mine = ++asked;
  const query = search.value.trim();
  const { conversations } = await get(`/app/conversations?q=${encodeURIComponent(query)}`);
  if (mine !== asked) return;
  list.replaceChildren();
  let section = null;
  let group = "";
  for (const row of conversations) {
    const name = query ? t("list.found") : age(row.updated);
    if (name !== group) {
      group = name;
      section = el("ul");
      list.append(el("h2", { class: "group", text: name }), section);
    }
    section.append(item(row));
  }
  if (!conversations.length) list.append(el("p", { class: "note none", text: t(query ? "list.nothing" : "list.empty") }));
  if (query) announce(t("list.count", { n: conversations.length }));
  mark();
}

function age(seconds) {
  const today = new Date().setHours(0, 0, 0, 0);
  const days = Math.ceil((today - seconds * 1000) / 86400000);
  return t(days <= 0 ? "list.today" : days === 1 ? "list.yesterday" : days <= 7 ? "list.week" : "list.earlier");
}

function item(row) {
  const title = row.title || t("untitled");
  const link = el("a", { href: `#/c/${row.id}`, onclick: closeDrawer }, el("span", { class: "title", dir: "auto", text: title }));
  if (row.snippet) link.append(el("span", { class: "snippet", dir: "auto", text: row.snippet }));
  const more = iconButton("more", t("list.more", { title }), () => actions(more, row), { class: "icon-button more", "aria-haspopup": "menu" });
  return el("li", { data: { id: row.id } }, link, more);
}

function mark() {
  for (const node of list.querySelectorAll("li")) {
    const current = node.dataset.id === state.conversation?.id && location.hash !== "#/compare";
    node.classList.toggle("current", current);
    if (current) node.firstChild.setAttribute("aria-current", "page");
    else node.firstChild.removeAttribute("aria-current");
  }
}

function actions(anchor, row) {
  const path = `/app/conversations/${row.id}`;
  menu(anchor, t("list.more", { title: row.title }), [
    ["edit", t("list.rename"), () => rename(row)],
    ["save", t("list.markdown"), () => download(`${path}/export?format=markdown`)],
    ["save", t("list.json"), () => download(`${path}/export?format=json`)],
    ["trash", t("list.delete"), () => removeConversation(row), { class: "item danger" }],
  ]);
}

function rename(row) {
  const node = list.querySelector(`li[data-id="${row.id}"]`);
  const field = el("input", { class: "field", dir: "auto", "aria-label": t("list.rename"), maxlength: "200", value: row.title });
  const done = async (keep) => {
    const title = field.value.trim();
    if (keep && title && title !== row.title) {
      const changed = await patch(`/app/conversations/${row.id}`, { title });
      if (state.conversation?.id === row.id) Object.assign(state.conversation, changed);
      emit("title");
    }
    await load();
    list.querySelector(`li[data-id="${row.id}"] .more`)?.focus();
  };
  let over = false;
  const once = (keep) => {
    if (over) return;
    over = true;
    done(keep);
  };
  field.addEventListener("keydown", (event) => {
    if (composing(event)) return;
    if (event.key === "Enter") once(true);
    if (event.key === "Escape") (event.stopPropagation(), once(false));
  });
  field.addEventListener("blur", () => once(true));
  node.replaceChildren(field);
  field.focus();
  field.select();
}

function removeConversation(row) {
  const confirmed = async () => {
    await remove(`/app/conversations/${row.id}`);
    panel.close();
    if (state.conversation?.id === row.id) chat.begin();
    await load();
    announce(t("list.deleted"));
    search.focus();
  };
  const panel = dialog(
    t("list.delete"),
    t("close"),
    el("p", { text: t("list.sure", { title: row.title || t("untitled") }) }),
    el(
      "div",
      { class: "row" },
      el("button", { type: "button", class: "quiet", onclick: () => panel.close(), text: t("cancel") }),
      el("button", { type: "button", class: "button danger", onclick: confirmed, text: t("list.delete") }),
    ),
  );
}
