// For owners: everyone's accounts, and invitations.
import { address } from "./address.js";
import { panel, secretOnce } from "./account_own.js";
import { get, patch, post, remove } from "./api.js";
import { announce, el, icon, iconButton } from "./dom.js";
import { sentence, t, when } from "./i18n.js";
import { dialog, menu } from "./popover.js";

const ROLES = ["owner", "creator", "member"];

/** The sections that only owners see. */
export async function peopleSections(me) {
  return [await invitations(), await people(me)];
}

const linkTo = (token) => `${location.origin}${address("/account/invitation")}#${token}`;

function roleSelect(current, props = {}) {
  const options = ROLES.map((role) => el("option", { value: role, selected: role === current, text: t(`role.${role}`) }));
  return el("select", { class: "field", ...props }, options);
}

async function invitations() {
  const list = el("ul", { class: "rows" });
  const shown = el("div");
  const role = roleSelect("member", { "aria-label": t("invitations.role") });
  const load = async () => {
    const found = await get("/app/invitations");
    list.replaceChildren(...found.invitations.map((one) => invitationRow(one, load)));
  };
  const invite = async (event) => {
    event.preventDefault();
    const made = await post("/app/invitations", { role: role.value });
    shown.replaceChildren(secretOnce(linkTo(made.token), t("invitations.once")));
    await load();
  };
  await load();
  const form = el("form", { class: "inline", onsubmit: invite }, role, el("button", { type: "submit", class: "button" }, icon("new"), t("invitations.add")));
  return panel(t("invitations.title"), t("invitations.note"), form, shown, list);
}

function invitationRow(one, load) {
  const withdraw = async () => {
    await remove(`/app/invitations/${one.id}`);
    announce(t("invitations.withdrawn"));
    await load();
  };
  const what = one.account ? t("invitations.password") : t(`role.${one.role}`);
  return el(
    "li",
    {},
    el("div", { class: "what" }, el("strong", { text: what }), el("span", { class: "note", text: t("invitations.until", { when: when(one.expires) }) })),
    el("button", { type: "button", class: "quiet", onclick: withdraw, text: t("invitations.withdraw") }),
  );
}

async function people(me) {
  const list = el("ul", { class: "rows" });
  const problem = el("p", { class: "problem", role: "alert" });
  const load = async () => {
    const found = await get("/app/accounts");
    list.replaceChildren(...found.accounts.map((one) => personRow(one, me, attempt)));
  };
  const attempt = async (work, done) => {
    problem.textContent = "";
    try {
      await work();
      if (done) announce(done);
    } catch (error) {
      problem.textContent = sentence(error);
    }
    await load();
  };
  await load();
  return panel(t("people.title"), t("people.note"), list, problem);
}

function personRow(one, me, attempt) {
  const path = `/app/accounts/${encodeURIComponent(one.id)}`;
  const label = t("people.role", { name: one.name });
  const change = (event) => attempt(() => patch(path, { role: event.target.value }), t("people.saved"));
  const role = roleSelect(one.role, { class: "field narrow", "aria-label": label, onchange: change });
  const more = iconButton("more", t("people.more", { name: one.name }), () => actions(), { "aria-haspopup": "menu" });
  const link = async () => {
    const made = await post(`${path}/password-link`);
    dialog(t("people.link", { name: one.name }), t("close"), secretOnce(linkTo(made.token), t("invitations.once")));
  };
  const actions = () =>
    menu(more, t("people.more", { name: one.name }), [
      ["key", t("people.password"), () => attempt(link)],
      ["leave", t("people.out"), () => attempt(() => remove(`${path}/sessions`), t("people.saved"))],
      one.disabled
        ? ["check", t("people.enable"), () => attempt(() => patch(path, { disabled: false }), t("people.saved"))]
        : ["close", t("people.disable"), () => attempt(() => patch(path, { disabled: true }), t("people.saved")), { class: "item danger" }],
    ]);
  return el(
    "li",
    { class: one.disabled ? "off" : null },
    el(
      "div",
      { class: "what" },
      el("strong", { text: one.name }),
      one.id === me.id && el("span", { class: "badge", text: t("people.you") }),
      one.disabled && el("span", { class: "badge warn", text: t("people.disabled") }),
      !one.has_password && el("span", { class: "note", text: t("people.key") }),
    ),
    role,
    more,
  );
}
