// Token counts and speed as text.
import { el } from "/static/web/js/dom.js";
import { number, percent, t } from "/static/web/js/i18n.js";
import { card, state } from "./state.js";

/** Tokens and speed so far, while an answer is being written. */
export function writingNote(usage) {
  if (!usage?.completion_tokens) return t("usage.waiting");
  return note(usage);
}

/** Tokens and speed of a complete answer. */
export function note(usage) {
  if (!usage?.completion_tokens) return "";
  const parts = [t(usage.completion_tokens === 1 ? "usage.token" : "usage.tokens", { n: number(usage.completion_tokens) })];
  if (usage.tokens_per_second) parts.push(t("usage.speed", { n: number(usage.tokens_per_second, usage.tokens_per_second < 10 ? 1 : 0) }));
  return parts.join(" · ");
}

/** The same in full, for a tooltip. */
export function details(message) {
  const usage = message.usage ?? {};
  const parts = [message.model];
  if (message.weight_version) parts.push(t("usage.version", { n: message.weight_version }));
  if (usage.prompt_tokens) parts.push(t("usage.prompt", { n: number(usage.prompt_tokens), cached: number(usage.cached_tokens ?? 0) }));
  if (usage.first_seconds) parts.push(t("usage.first", { n: number(usage.first_seconds, 2) }));
  return parts.filter(Boolean).join("\n");
}

/** How much of the model's context the conversation takes, as of its last answer. */
export function contextNote() {
  const most = card()?.max_model_len;
  const usage = state.messages.findLast((message) => message.usage?.prompt_tokens)?.usage;
  if (!most || !usage) return null;
  const used = usage.prompt_tokens + (usage.completion_tokens ?? 0);
  const text = t("context.used", { n: number(used), of: number(most), share: percent(used / most) });
  return el("span", { class: used > 0.9 * most ? "context full" : "context", text });
}
