// Conversations of a file: Puna's own exports, ChatGPT's or Open WebUI's. The server reads each; the page only takes them out
// of the file and sends them a few at a time, since a file can be larger than a request may be.
import { el } from "/static/web/js/dom.js";
import { post } from "/static/web/js/api.js";
import { number, sentence, t } from "/static/web/js/i18n.js";
import { emit } from "./state.js";

const MOST_CHARACTERS = 1_500_000; // of one request
const MOST_CONVERSATIONS = 200;

/** A button that asks for a file, and a line that says what came of it. */
export function importField() {
  const said = el("p", { class: "note", role: "status" });
  const input = el("input", { type: "file", accept: ".json,application/json", hidden: true });
  const button = el("button", { type: "button", class: "quiet", onclick: () => input.click(), text: t("import.choose") });
  input.addEventListener("change", async () => {
    button.disabled = true;
    said.textContent = t("import.working");
    said.textContent = await importFile(input.files[0]).catch(sentence);
    button.disabled = false;
    input.value = "";
    emit("list");
  });
  return [el("h3", { text: t("import.title") }), el("p", { class: "note", text: t("import.note") }), el("div", { class: "row start" }, button, input), said];
}

/** Send what is in a file; returns what came of it, as a sentence. */
async function importFile(file) {
  let found;
  try {
    found = JSON.parse(await file.text());
  } catch {
    return t("import.unreadable");
  }
  let imported = 0;
  const failed = [];
  for (const conversations of batches(Array.isArray(found) ? found : (found?.conversations ?? [found]))) {
    const result = await post("/app/import", { conversations });
    imported += result.imported.length;
    failed.push(...result.failed.map((one) => one.message));
  }
  const values = { n: number(imported), failed: number(failed.length), details: failed[0] ?? "" };
  return t(!imported ? "import.none" : failed.length ? "import.some" : "import.done", values);
}

function* batches(conversations) {
  let batch = [];
  let size = 0;
  for (const one of conversations) {
    const length = JSON.stringify(one).length;
    if (batch.length && (size + length > MOST_CHARACTERS || batch.length === MOST_CONVERSATIONS)) {
      yield batch;
      [batch, size] = [[], 0];
    }
    batch.push(one);
    size += length;
  }
  if (batch.length) yield batch;
}
