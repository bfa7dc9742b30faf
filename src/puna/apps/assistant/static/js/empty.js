// A conversation without messages.
import { el } from "/static/web/js/dom.js";
import { t } from "/static/web/js/i18n.js";
import { card, emit } from "./state.js";

/** A greeting and a few prompts to start from; a model that introduces itself says what it can do, and shows it. */
export function emptyState() {
  const model = card();
  const base = model?.stage === "base";
  const own = model?.introduction;
  const texts = own?.starters.length ? own.starters.map((starter) => starter.prompt) : suggestions(model);
  const lead = own ? own.about : t(base ? "empty.base.lead" : "empty.chat.lead", { model: model?.id ?? "" });
  return el(
    "section",
    { class: "empty" },
    el("h2", { text: own ? t("empty.own", { model: model.id }) : t(base ? "empty.base" : "empty.chat") }),
    el("p", { class: "lead", text: lead }),
    el("ul", { class: own || model?.learned.prompts.length ? "starters own" : "starters" }, texts.map(starterButton)),
    own?.starters.some((starter) => starter.before) ? beforeAndAfter(own.starters) : "",
  );
}

// By what a model learned to read (apps/assistant/starters.py).
const SUGGESTED = { any: ["1", "2", "3", "4"], prose: ["1", "5", "3", "4"], code: ["code.1", "code.2", "code.3", "code.4"] };

/** Prompts that follow what the model learned: problems of its tasks, else texts of the kind that it read. */
function suggestions(model) {
  const { kind, prompts } = model?.learned ?? { kind: "any", prompts: [] };
  const group = model?.stage === "base" ? "start.base" : "start.chat";
  return prompts.length ? prompts : SUGGESTED[kind].map((name) => t(`${group}.${name}`));
}

function starterButton(text) {
  return el("li", {}, el("button", { type: "button", class: "starter", dir: "auto", onclick: () => emit("fill", text), text }));
}

/** What the model wrote before it was tuned, and what it writes now, for each of its starters. */
function beforeAndAfter(starters) {
  const heads = ["own.prompt", "own.before", "own.after"].map((key) => el("th", { scope: "col", text: t(key) }));
  const rows = starters.map(({ prompt, before, after }) =>
    el("tr", {}, ...[prompt, before, after].map((text) => el("td", {}, el("pre", { dir: "auto", text })))),
  );
  return el(
    "details",
    { class: "before-after", open: true },
    el("summary", { text: t("own.compare") }),
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows))),
  );
}
