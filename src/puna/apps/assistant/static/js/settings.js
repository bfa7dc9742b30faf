// The settings of a conversation: model, system prompt, sampling.
import { el } from "/static/web/js/dom.js";
import * as chat from "./chat.js";
import { sentence, t } from "/static/web/js/i18n.js";
import { dialog } from "/static/web/js/popover.js";
import { card, chosen, state } from "./state.js";

// name, min, max, step: as the server accepts them (apps/assistant/answer.py).
const SAMPLING = [
  ["temperature", 0, 5, 0.05],
  ["top_p", 0.01, 1, 0.01],
  ["top_k", 0, 1000, 1],
  ["min_p", 0, 1, 0.01],
  ["repetition_penalty", 0.1, 10, 0.01],
  ["max_tokens", 1, 1000000, 1],
  ["seed", 0, 2147483647, 1],
];

/**
 * Fields for sampling settings. Returns the element, a function that reads them, and one that shows the defaults of some
 * models: the numbers that an empty field stands for.
 */
export function samplingFields(settings) {
  const inputs = SAMPLING.map(([name, min, max, step]) =>
    el("input", { class: "field", type: "number", name, min, max, step, inputmode: "decimal", value: settings[name] ?? "" }),
  );
  const node = el(
    "div",
    { class: "fields" },
    inputs.map((input) =>
      el("label", { class: "labelled", title: t(`settings.${input.name}.note`) }, el("span", { text: t(`settings.${input.name}`) }), input),
    ),
  );
  const read = () => Object.fromEntries(inputs.filter((input) => input.value !== "").map((input) => [input.name, Number(input.value)]));
  const showDefaults = (models) => {
    for (const input of inputs) input.placeholder = usual(input.name, models);
  };
  return [node, read, showDefaults];
}

function usual(name, models) {
  if (name === "seed") return t("settings.random");
  const [value, ...others] = new Set(models.map((model) => card(model)?.defaults[name]));
  return value === undefined || others.length ? t("settings.usual") : t("settings.default", { n: String(value) });
}

/** A select with the models that are served. */
export function modelSelect(current, name) {
  const select = el("select", { class: "field", name, "aria-label": t("settings.model") });
  fillModels(select, current);
  return select;
}

/** Fill a select with the models that are served; one that is chosen and gone is named as such. */
export function fillModels(select, current) {
  const options = state.models.map((model) => {
    const text = model.stage === "base" ? t("settings.model.base", { model: model.id }) : model.id;
    return el("option", { value: model.id, selected: model.id === current, text });
  });
  if (current && !card(current)) options.unshift(el("option", { value: current, selected: true, disabled: true, text: t("gone.option", { model: current }) }));
  select.replaceChildren(...options);
}

export function openSettings() {
  const now = chosen();
  const model = modelSelect(now.model, "model");
  const system = el("textarea", { class: "field", name: "system", rows: "5", dir: "auto", placeholder: t("settings.system.placeholder"), value: now.system });
  const systemLabel = el("label", { class: "labelled" }, el("span", { text: t("settings.system") }), system);
  const note = el("p", { class: "note" });
  const [fields, read, showDefaults] = samplingFields(now.settings);
  const refresh = () => {
    const base = card(model.value)?.stage === "base";
    systemLabel.hidden = base;
    note.textContent = base ? t("settings.base") : "";
    note.hidden = !base;
    showDefaults([model.value]);
  };
  model.addEventListener("change", refresh);
  refresh();
  const problem = el("p", { class: "problem", role: "alert" });
  const save = async (event) => {
    event.preventDefault();
    try {
      await chat.change({ ...(card(model.value) ? { model: model.value } : {}), system: system.value, settings: read() });
      window_.close();
    } catch (error) {
      problem.textContent = sentence(error);
    }
  };
  const form = el(
    "form",
    { class: "form", onsubmit: save },
    el("label", { class: "labelled" }, el("span", { text: t("settings.model") }), model),
    note,
    systemLabel,
    el("h3", { text: t("settings.sampling") }),
    fields,
    problem,
    el(
      "div",
      { class: "row" },
      el("button", { type: "button", class: "quiet", onclick: () => window_.close(), text: t("cancel") }),
      el("button", { type: "submit", class: "button", text: t("save") }),
    ),
  );
  const window_ = dialog(t("settings.title"), t("close"), form);
}
