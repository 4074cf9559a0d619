// Numbers as text. What is unknown is a dash, never 0.
import { languageNow } from "./text.js";

export const UNKNOWN = "–";
const GROUPED = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const MINUTE = 60, HOUR = 3600, DAY = 86_400;

export function isKnown(value) {
  return Number.isFinite(value);
}

// A whole number: 1,234 or 56k or 7.8M.
export function count(value) {
  if (!isKnown(value)) return UNKNOWN;
  if (Math.abs(value) < 10_000) return GROUPED.format(value);
  return Math.abs(value) < 999_500 ? `${Math.round(value / 1000)}k` : large(value / 1_000_000);
}

function large(millions) {
  return millions < 999.5 ? `${millions.toFixed(millions < 10 ? 1 : 0)}M` : `${(millions / 1000).toFixed(1)}G`;
}

// Something per second, with a decimal while it matters.
export function rate(value) {
  if (!isKnown(value)) return UNKNOWN;
  return value > 0 && value < 10 ? value.toFixed(value < 0.1 ? 2 : 1) : count(value);
}

// A share of 1 as a percentage.
export function share(value) {
  return isKnown(value) ? `${Math.round(value * 100)}%` : UNKNOWN;
}

export function ofLimit(value, limit) {
  return isKnown(limit) ? `${count(value)}/${count(limit)}` : count(value);
}

// A duration in at most seven characters: 85 ms, 1.9 s, 42 s, 7 min, 3.5 h, 12 d.
export function seconds(value) {
  if (!isKnown(value)) return UNKNOWN;
  const size = Math.abs(value);
  if (size < 0.0005) return "0 s";
  if (size < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (size < 9.95) return `${value.toFixed(1)} s`;
  if (size < 2 * MINUTE) return `${Math.round(value)} s`;
  if (size < 2 * HOUR) return `${Math.round(value / MINUTE)} min`;
  return size < 2 * DAY ? `${(value / HOUR).toFixed(1)} h` : `${Math.round(value / DAY)} d`;
}

// Seconds since the epoch as the time of day here, with the date if it is not today.
export function clock(at, now = Date.now() / 1000) {
  if (!isKnown(at)) return UNKNOWN;
  const date = new Date(at * 1000);
  const time = date.toLocaleTimeString(languageNow(), { hour12: false });
  return Math.abs(now - at) < DAY / 2 ? time : `${date.toLocaleDateString(languageNow())} ${time}`;
}

// The name of a backend, which for those who are no operators is its URL.
export function shortName(name) {
  return name.replace(/^https?:\/\//, "");
}

// A sentence of the proxy: they begin in lower case where they follow a name.
export function sentence(text) {
  if (!text) return "";
  const whole = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
