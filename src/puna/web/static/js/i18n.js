// Languages: each product has its texts in a directory of its own (<directory>/<language>.json), numbers and dates by Intl.
import { get } from "./api.js";

export const LANGUAGES = { en: "English", zh: "中文", es: "Español" };
const TAGS = { en: "en", zh: "zh-Hans", es: "es" };
let texts = {};
export let language = "en";

/** Load the kit's texts and those of the given directories: in the chosen language, or the browser's first known one. */
export async function loadLanguage(...directories) {
  const chosen = localStorage.getItem("puna.language");
  const wanted = [chosen, ...navigator.languages].map((tag) => (tag ?? "").slice(0, 2).toLowerCase());
  language = wanted.find((tag) => tag in LANGUAGES) ?? "en";
  const found = await Promise.all(["/static/web/i18n", ...directories].map((place) => get(`${place}/${language}.json`)));
  texts = Object.assign({}, ...found);
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

const BY_CODE = {
  context_length_exceeded: "error.context",
  upstream_unreachable: "error.upstream",
  engine_dead: "error.upstream",
  wrong_password: "error.password",
  weak_password: "error.password.weak",
  name_in_use: "error.name",
  bad_invitation: "error.invitation",
  too_many_attempts: "error.attempts",
  last_owner: "error.owner",
};
const BY_STATUS = { 0: "error.unreachable", 401: "error.key", 429: "error.busy", 503: "error.leaving", 413: "error.large" };

/** An error as one sentence. */
export function sentence(error) {
  if (error.code === "wrong_password" && error.status === 403) return t("error.password.current");
  const key = [BY_CODE[error.code], BY_STATUS[error.status]].find((one) => one in texts);
  return key ? t(key, { details: error.message }) : error.message || t("error.unknown");
}
