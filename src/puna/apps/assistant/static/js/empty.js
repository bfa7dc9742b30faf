// A conversation without messages.
import { el } from "/static/web/js/dom.js";
import { t } from "/static/web/js/i18n.js";
import { card, emit } from "./state.js";

/** A greeting and a few prompts to start from; a model that introduces itself says what it can do, and shows it. */
export function emptyState() {
  const model = card();
  const base = model?.stage === "base";
  const own = model?.introduction;
  const texts = own?.starters.length
    ? own.starters.map((starter) => starter.prompt)
    : [1, 2, 3, 4].map((at) => t(`${base ? "start.base" : "start.chat"}.${at}`));
  const lead = own ? own.about : t(base ? "empty.base.lead" : "empty.chat.lead", { model: model?.id ?? "" });
  return el(
    "section",
    { class: "empty" },
    el("h2", { text: own ? t("empty.own", { model: model.id }) : t(base ? "empty.base" : "empty.chat") }),
    el("p", { class: "lead", text: lead }),
    el("ul", { class: own ? "starters own" : "starters" }, texts.map(starterButton)),
    own?.starters.some((starter) => starter.before) ? beforeAndAfter(own.starters) : "",
  );
}

function starterButton(text) {
  return el("li", {}, el("button", { type: "button", class: "starter", onclick: () => emit("fill", text), text }));
}

/** What the model wrote before it was tuned, and what it writes now, for each of its starters. */
function beforeAndAfter(starters) {
  const heads = ["own.prompt", "own.before", "own.after"].map((key) => el("th", { scope: "col", text: t(key) }));
  const rows = starters.map(({ prompt, before, after }) =>
    el("tr", {}, ...[prompt, before, after].map((text) => el("td", {}, el("pre", { text })))),
  );
  return el(
    "details",
    { class: "before-after", open: true },
    el("summary", { text: t("own.compare") }),
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows))),
  );
}
