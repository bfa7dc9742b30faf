// Languages: texts in /static/i18n/*.json, numbers and dates by Intl.
import { get } from "./api.js";

export const LANGUAGES = { en: "English", zh: "中文", es: "Español" };
const TAGS = { en: "en", zh: "zh-Hans", es: "es" };
let texts = {};
export let language = "en";

/** Load a language: the one that was chosen, else the browser's first that we have. */
export async function loadLanguage(chosen = localStorage.getItem("puna.language")) {
  const wanted = [chosen, ...navigator.languages].map((tag) => (tag ?? "").slice(0, 2).toLowerCase());
  language = wanted.find((tag) => tag in LANGUAGES) ?? "en";
  texts = await get(`/static/i18n/${language}.json`);
  document.documentElement.lang = TAGS[language];
}

export function chooseLanguage(tag) {
  if (tag) localStorage.setItem("puna.language", tag);
  else localStorage.removeItem("puna.language");
}

/** The text of a key; {name} in it is replaced by values.name. */
export function t(key, values = {}) {
  return (texts[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

export const number = (value, digits = 0) =>
  new Intl.NumberFormat(TAGS[language], { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);

export const percent = (share) =>
  new Intl.NumberFormat(TAGS[language], { style: "percent", maximumSignificantDigits: 2 }).format(share);

export const when = (seconds) =>
  new Intl.DateTimeFormat(TAGS[language], { dateStyle: "medium", timeStyle: "short" }).format(new Date(seconds * 1000));

/** What a failure is called, in one sentence. */
export function sentence(error) {
  const known = { 0: "error.unreachable", 401: "error.key", 429: "error.busy", 503: "error.leaving", 413: "error.large" };
  if (error.code === "context_length_exceeded") return t("error.context", { details: error.message });
  const key = known[error.status];
  return key ? t(key) : error.message || t("error.unknown");
}
