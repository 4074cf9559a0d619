// The columns of the fleet's table: how a backend is shown in each, and by what it is sorted.
import { bar, setBar, setSparkline, sparkline } from "./bars.js";
import { setAttribute, setText } from "./dom.js";
import { count, isKnown, rate, seconds, share, UNKNOWN } from "./format.js";
import { glyph, setGlyph } from "./glyphs.js";
import { gravity } from "./problems.js";
import { t } from "./text.js";

const HIDDEN_UP_TO = { w1: 600, w2: 900, w3: 1240 }; // pixels, as in css/tables.css

// { key, name: CSS classes (n: a number; w1 to w3: hidden on narrow screens),
//   fill(cell): once, show(cell, backend, now, scale), sort(backend): number or text, descends: largest first }
export const COLUMNS = [
  {
    key: "state",
    fill: (cell) => cell.append(glyph("ready"), document.createElement("span")),
    show: showState,
    sort: (one) => -gravity(one),
  },
  { key: "name", fill: () => {}, show: () => {}, sort: (one) => one.name },
  { key: "since", name: "n w2", show: (cell, one, now) => setText(cell, ageOf(one, now)), sort: (one) => (isKnown(one.since) ? -one.since : null) },
  { key: "models", name: "w1", show: showModels, sort: (one) => one.models.join() },
  { key: "tier", name: "n w3", show: (cell, one) => setText(cell, count(one.tier)), sort: (one) => one.tier },
  {
    key: "slots",
    fill: (cell) => cell.append(bar(), document.createElement("span")),
    show: showSlots,
    sort: (one) => one.in_flight,
    descends: true,
  },
  number("waiting", "w2", (one) => one.waiting, count),
  {
    key: "cache",
    name: "w2",
    fill: (cell) => cell.append(bar(), document.createElement("span")),
    show: showCache,
    sort: (one) => one.kv_cache_use,
    descends: true,
  },
  number("tokensIn", "w2", (one) => one.tokens_in_per_second, rate),
  number("tokensOut", "w1", (one) => one.tokens_out_per_second, rate),
  number("ttft50", "w2", (one) => one.ttft_p50, seconds),
  number("ttft95", "w1", (one) => one.ttft_p95, seconds),
  number("errors", "w1", (one) => one.errors_per_minute, count),
  {
    key: "hits",
    name: "n w3",
    show: (cell, one) => setText(cell, `${share(one.predicted_hit_rate)} ${share(one.real_hit_rate)}`),
    sort: (one) => one.real_hit_rate,
    descends: true,
  },
  {
    key: "recent",
    name: "w1",
    fill: (cell) => cell.append(sparkline()),
    show: (cell, one, now, scale) => setSparkline(cell.firstChild, one.recent ?? [], scale),
    sort: (one) => Math.max(0, ...(one.recent ?? [])),
    descends: true,
  },
  { key: "engine", name: "w3", show: showEngine, sort: (one) => `${one.engine} ${one.engine_version ?? ""}` },
];

// How many columns the screen has room for.
export function countVisible() {
  const hidden = Object.keys(HIDDEN_UP_TO).filter((name) => matchMedia(`(max-width: ${HIDDEN_UP_TO[name]}px)`).matches);
  return COLUMNS.filter(({ name = "" }) => !hidden.some((one) => name.split(" ").includes(one))).length;
}

function number(key, hidden, value, format) {
  return {
    key,
    name: `n ${hidden}`,
    show: (cell, one) => {
      setText(cell, format(value(one)));
      if (key === "errors" || key === "waiting") setAttribute(cell, "class", `n ${hidden}${value(one) > 0 ? " strong" : ""}`);
    },
    sort: value,
    descends: true,
  };
}

function showState(cell, one) {
  setGlyph(cell.firstChild, one.shown_state);
  setText(cell.lastChild, t(`state.${one.shown_state}`));
  setAttribute(cell, "class", `state is-${one.shown_state}`);
}

function showModels(cell, one) {
  const text = one.models.join(", ") || UNKNOWN;
  setText(cell, text);
  setAttribute(cell, "title", text);
}

function showSlots(cell, one) {
  // The engine's number is as old as the latest poll; the proxy knows its own requests at once.
  const running = Math.max(one.processing ?? 0, Math.min(one.in_flight, one.slots ?? Infinity));
  setBar(cell.firstChild, running / (one.slots ?? one.limit ?? Math.max(8, running)), (one.waiting ?? 0) / (one.slots ?? 8));
  setText(cell.lastChild, `${count(running)}/${isKnown(one.slots) ? count(one.slots) : UNKNOWN}`);
}

function showCache(cell, one) {
  setBar(cell.firstChild, one.kv_cache_use);
  setText(cell.lastChild, share(one.kv_cache_use));
}

function showEngine(cell, one) {
  const text = [one.engine ?? UNKNOWN, one.engine_version].filter(Boolean).join(" ");
  setText(cell, text);
  setAttribute(cell, "title", text);
}

function ageOf(one, now) {
  return isKnown(one.since) ? seconds(Math.max(0, Math.round(now - one.since))) : UNKNOWN;
}
