// One's own account: password, sessions and API keys.
import { get, post, remove } from "./api.js";
import { copy } from "./copy.js";
import { announce, el, icon, iconButton } from "./dom.js";
import { sentence, t, when } from "./i18n.js";
import { labelled } from "./sign_in.js";

/** The sections of one's own account. */
export async function ownSections(me) {
  const sections = [await sessions(), await keys()];
  return me.has_password ? [passwordSection(), ...sections] : sections;
}

/** A section with a heading and a note. */
export function panel(title, note, ...children) {
  return el("section", { class: "panel" }, el("h2", { text: title }), note && el("p", { class: "note", text: note }), children);
}

/** A secret that is shown once, with a button to copy it. */
export function secretOnce(text, note) {
  const field = el("input", { class: "field mono", readonly: true, value: text, "aria-label": note, onfocus: (event) => event.target.select() });
  const button = el("button", { type: "button", class: "button", onclick: (event) => copy(text, event.currentTarget) }, icon("copy"), t("copy"));
  return el("div", { class: "shown-once", role: "status" }, el("p", { class: "note", text: note }), el("div", { class: "inline" }, field, button));
}

function passwordSection() {
  const current = el("input", { class: "field", type: "password", autocomplete: "current-password", required: true });
  const fresh = el("input", { class: "field", type: "password", autocomplete: "new-password", required: true, minlength: "8" });
  const problem = el("p", { class: "problem", role: "alert" });
  const form = el(
    "form",
    {
      class: "form",
      onsubmit: async (event) => {
        event.preventDefault();
        try {
          await post("/app/account/password", { current: current.value, new: fresh.value });
          form.reset();
          problem.textContent = "";
          done.textContent = t("account.password.saved");
        } catch (error) {
          done.textContent = "";
          problem.textContent = sentence(error);
        }
      },
    },
    el("div", { class: "fields two" }, labelled(t("account.password.current"), current), labelled(t("account.password.new"), fresh)),
    problem,
  );
  const done = el("p", { class: "note", role: "status" });
  form.append(el("div", { class: "row start" }, el("button", { type: "submit", class: "button", text: t("account.password.save") }), done));
  return panel(t("account.password"), t("account.password.ends"), form);
}

async function sessions() {
  const list = el("ul", { class: "rows" });
  const others = el("button", { type: "button", class: "quiet", text: t("account.sessions.others") });
  const load = async () => {
    const found = await get("/app/account/sessions");
    list.replaceChildren(...found.sessions.map((one) => sessionRow(one, one.id === found.current, load)));
    others.hidden = found.sessions.length < 2;
  };
  others.addEventListener("click", async () => {
    await remove("/app/account/sessions");
    announce(t("account.sessions.ended"));
    await load();
  });
  await load();
  return panel(t("account.sessions"), t("account.sessions.note"), list, el("div", { class: "row start" }, others));
}

function sessionRow(one, current, load) {
  const end = async () => {
    await remove(`/app/account/sessions/${one.id}`);
    announce(t("account.sessions.ended"));
    await load();
  };
  return el(
    "li",
    {},
    el(
      "div",
      { class: "what" },
      el("strong", { text: browserName(one.agent) }),
      current && el("span", { class: "badge", text: t("account.sessions.this") }),
      el("span", { class: "note", text: t("account.used", { when: when(one.used) }) }),
    ),
    !current && el("button", { type: "button", class: "quiet", onclick: end, text: t("account.sessions.end") }),
  );
}

/** The browser and system of a User-Agent header, as well as they can be told. */
function browserName(agent) {
  const browser = [["Firefox/", "Firefox"], ["Edg/", "Edge"], ["OPR/", "Opera"], ["Chrome/", "Chrome"], ["Safari/", "Safari"]].find(([mark]) => agent.includes(mark));
  const system = [["iPhone", "iPhone"], ["iPad", "iPad"], ["Android", "Android"], ["Windows", "Windows"], ["Mac OS", "macOS"], ["Linux", "Linux"]].find(([mark]) => agent.includes(mark));
  return [browser?.[1] ?? (agent.split(/[\s/]/)[0] || "?"), system?.[1]].filter(Boolean).join(", ");
}

async function keys() {
  const list = el("ul", { class: "rows" });
  const shown = el("div");
  const label = el("input", { class: "field", required: true, maxlength: "100", placeholder: t("account.keys.label.example"), "aria-label": t("account.keys.label") });
  const problem = el("p", { class: "problem", role: "alert" });
  const load = async () => {
    const found = await get("/app/account/keys");
    list.replaceChildren(...found.keys.map((one) => keyRow(one, load)));
  };
  const add = async (event) => {
    event.preventDefault();
    try {
      const made = await post("/app/account/keys", { label: label.value });
      event.target.reset();
      problem.textContent = "";
      shown.replaceChildren(secretOnce(made.key, t("account.keys.once")));
      await load();
    } catch (error) {
      problem.textContent = sentence(error);
    }
  };
  await load();
  const form = el("form", { class: "inline", onsubmit: add }, label, el("button", { type: "submit", class: "quiet" }, icon("new"), t("account.keys.add")));
  return panel(t("account.keys"), t("account.keys.note"), list, form, problem, shown);
}

function keyRow(one, load) {
  const drop = async () => {
    await remove(`/app/account/keys/${one.id}`);
    announce(t("account.keys.deleted"));
    await load();
  };
  const used = one.used ? t("account.used", { when: when(one.used) }) : t("account.keys.unused");
  return el(
    "li",
    {},
    el("div", { class: "what" }, el("strong", { text: one.label }), el("code", { text: `${one.hint}…` }), el("span", { class: "note", text: used })),
    iconButton("trash", t("account.keys.delete", { label: one.label }), drop),
  );
}
