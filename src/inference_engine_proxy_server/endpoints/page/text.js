// The words of the page, in the language of the browser or the one that was chosen.
import { recall, remember } from "./memory.js";
import enOverview from "./i18n/en.overview.js";
import enViews from "./i18n/en.views.js";
import zhOverview from "./i18n/zh-TW.overview.js";
import zhViews from "./i18n/zh-TW.views.js";

const LANGUAGES = { en: { ...enOverview, ...enViews }, "zh-TW": { ...zhOverview, ...zhViews } };
const listeners = [];
let language = recall("language") ?? ofBrowser();
if (!(language in LANGUAGES)) language = "en";

function ofBrowser() {
  // Everyone who reads Chinese gets Traditional Chinese, the only kind that there is here.
  const known = navigator.languages.map((name) => (name.toLowerCase().startsWith("zh") ? "zh-TW" : name.slice(0, 2)));
  return known.find((name) => name in LANGUAGES) ?? "en";
}

// The text of a key, with {names} replaced. With a count of 1, the text of `KEY.one`, if there is one.
export function t(key, values = {}) {
  const texts = LANGUAGES[language];
  const text = (values.count === 1 && texts[`${key}.one`]) || texts[key];
  if (text === undefined) throw new Error(`no text ${key}`);
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

export function hasText(key) {
  return key in LANGUAGES[language];
}

export function languageNow() {
  return language;
}

export function onLanguageChange(listener) {
  listeners.push(listener);
}

export function nextLanguage() {
  const names = Object.keys(LANGUAGES);
  language = names[(names.indexOf(language) + 1) % names.length];
  remember("language", language);
  fillPage();
  for (const listener of listeners) listener();
}

export function fillElement(element) {
  const { text, label, hint, ghost } = element.dataset;
  if (text !== undefined) element.textContent = t(text);
  if (label !== undefined) element.setAttribute("aria-label", t(label));
  if (hint !== undefined) element.setAttribute("title", t(hint));
  if (ghost !== undefined) element.setAttribute("placeholder", t(ghost));
}

export function fillPage(root = document.documentElement) {
  document.documentElement.lang = language;
  fillElement(root);
  for (const one of root.querySelectorAll("[data-text], [data-label], [data-hint], [data-ghost]")) fillElement(one);
}
