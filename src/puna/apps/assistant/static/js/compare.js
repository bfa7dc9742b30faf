// Two answers to one prompt, side by side. Which one is better is stored as a preference.
import { announce, composing, el, icon } from "/static/web/js/dom.js";
import { keepDraft, keepField } from "/static/web/js/drafts.js";
import { post, stream } from "/static/web/js/api.js";
import { sentence, t } from "/static/web/js/i18n.js";
import { fillModels, modelSelect, samplingFields } from "./settings.js";
import { on, state } from "./state.js";
import { sync, textNode } from "/static/web/js/rich_text.js";
import { note, writingNote } from "./usage.js";

const SIDES = ["a", "b"];

/** The whole view. */
export function compareView() {
  const names = SIDES.map((side, at) => modelSelect((state.models[at] ?? state.models[0])?.id, side));
  for (const [at, select] of names.entries()) select.setAttribute("aria-label", t("compare.model", { side: SIDES[at].toUpperCase() }));
  const prompt = el("textarea", { class: "field", rows: "3", dir: "auto", placeholder: t("compare.placeholder"), "aria-label": t("compare.prompt") });
  keepField(prompt, `${state.user}.compare`);
  const [fields, read, showDefaults] = samplingFields({});
  const refresh = () => showDefaults(names.map((select) => select.value));
  for (const select of names) select.addEventListener("change", refresh);
  on("models", () => (names.forEach((select) => fillModels(select, select.value)), refresh()));
  refresh();
  const options = el("details", { class: "options" }, el("summary", { text: t("settings.sampling") }), fields);
  const go = el("button", { type: "submit", class: "button" }, icon("send"), t("compare.go"));
  const halt = el("button", { type: "button", class: "quiet", hidden: true, text: t("stop") });
  const problem = el("p", { class: "problem", role: "alert" });
  const columns = SIDES.map((side, at) => column(side, names[at]));
  const verdict = el("div", { class: "verdict", role: "group", "aria-label": t("compare.which"), hidden: true });
  const form = el(
    "form",
    { class: "compare-form" },
    prompt,
    options,
    problem,
    el("div", { class: "row" }, halt, go),
  );

  const ask = async (event) => {
    event.preventDefault();
    if (!prompt.value.trim() || go.disabled) return;
    let id = null;
    go.disabled = true;
    verdict.hidden = true;
    problem.textContent = "";
    columns.forEach((one) => one.clear());
    halt.onclick = () => id && post(`/app/compare/${id}/stop`);
    try {
      const body = { prompt: prompt.value, models: names.map((select) => select.value), settings: read() };
      await stream("/app/compare", body, (event, data) => {
        if (event === "start") (id = data.id), (halt.hidden = false);
        else columns[SIDES.indexOf(data.side)].take(event, data);
      });
      keepDraft(`${state.user}.compare`, "");
      judge(verdict, id);
      announce(t("compare.done"));
    } catch (error) {
      problem.textContent = sentence(error);
    } finally {
      go.disabled = false;
      halt.hidden = true;
    }
  };
  form.addEventListener("submit", ask);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !composing(event)) ask(event);
  });
  return el(
    "div",
    { class: "compare" },
    el("p", { class: "note", text: t("compare.note") }),
    form,
    el("div", { class: "columns" }, columns.map((one) => one.node)),
    verdict,
  );
}

function column(side, select) {
  const text = textNode("", "content");
  const usage = el("p", { class: "usage" });
  const heading = el("h2", { text: side.toUpperCase() });
  const node = el("section", { class: "column", "aria-label": side.toUpperCase() }, el("header", {}, heading, select), text, usage);
  return {
    node,
    clear() {
      text.replaceChildren();
      usage.textContent = "";
    },
    take(event, data) {
      if (event === "update") {
        sync(text, data.blocks.content, data.sizes.content);
        usage.textContent = writingNote(data.usage);
      } else {
        usage.textContent = data.error ? sentence({ ...data.error, status: 400 }) : note(data.message.usage);
      }
    },
  };
}

function judge(place, id) {
  const say = (better) => async () => {
    await post(`/app/compare/${id}`, { better });
    for (const button of place.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.better === better));
    place.querySelector(".note").textContent = t("compare.saved");
    announce(t("compare.saved"));
  };
  const buttons = ["a", "same", "b"].map((better) =>
    el("button", { type: "button", class: "quiet", data: { better }, "aria-pressed": "false", onclick: say(better), text: t(`compare.${better}`) }),
  );
  place.replaceChildren(el("p", { class: "note", text: t("compare.which") }), el("div", { class: "row" }, buttons));
  place.hidden = false;
}
