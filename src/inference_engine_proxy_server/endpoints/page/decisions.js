// Why a request went to a backend: every candidate with the values that were compared.
import { askOperator } from "./access.js";
import { bar, setBar } from "./bars.js";
import { el, setHidden, setText, svg } from "./dom.js";
import { clock, count, isKnown, seconds, UNKNOWN } from "./format.js";
import { hasText, t } from "./text.js";

const REFRESH_MS = 3000;
const SHOWN = 20;
// Terms of `expected_time` in seconds, which together make up the cost: they are parts of one bar.
const PARTS = ["place", "before", "own", "crowd", "memory", "tier"];
const ABOUT = ["name", "held_tokens", "cost", "home"];

export class Decisions {
  constructor() {
    this.failure = el("p", { class: "failure" });
    this.empty = el("p", { class: "empty", text: "decisions.none" });
    this.list = el("div", { class: "decisions" });
    this.legend = el("p", { class: "legend-row" }, ...PARTS.map((part) =>
      el("span", { class: `legend part-${part}`, text: `term.${part}`, hint: `term.${part}.hint` })));
    this.root = el("section", { label: "view.decisions" },
      el("div", { class: "toolbar" }, el("h2", { text: "view.decisions" }), el("p", { class: "soft", text: "decisions.about" })),
      this.legend, this.failure, this.empty, this.list);
    this.askedAt = -Infinity;
    this.latest = "";
  }

  async render(model) {
    if (performance.now() - this.askedAt < REFRESH_MS || this.isRead()) return;
    this.askedAt = performance.now();
    this.now = model.snapshot.at;
    try {
      const { decisions } = await askOperator(`decisions?limit=${SHOWN}`);
      setText(this.failure, "");
      this.show(decisions);
    } catch (error) {
      setText(this.failure, error.message);
    }
  }

  // Nothing changes while somebody reads it.
  isRead() {
    return this.latest !== "" && (this.list.matches(":hover") || this.list.contains(document.activeElement));
  }

  // After a change of language.
  redraw() {
    this.latest = "";
    this.askedAt = -Infinity;
  }

  show(decisions) {
    setHidden(this.empty, decisions.length > 0);
    setHidden(this.legend, !decisions.some((one) => isInSeconds(one) || (one.shadow && isInSeconds(one.shadow))));
    const latest = JSON.stringify(decisions);
    if (latest === this.latest) return;
    this.latest = latest;
    const open = new Set([...this.list.querySelectorAll("details[open]")].map((one) => one.dataset.id));
    this.list.replaceChildren(...decisions.map((one, at) => newDecision(one, this.now, open.has(idOf(one)) || (open.size === 0 && at === 0))));
  }
}

function idOf(decision) {
  return `${decision.request_id} ${decision.at}`;
}

function isInSeconds(decision) {
  return decision.candidates.some((one) => "before" in one && "own" in one);
}

function newDecision(decision, now, isOpen) {
  const summary = el("summary", {}, el("time", {}, clock(decision.at, now)), el("strong", {}, decision.chosen),
    el("span", {}, decision.model ?? t("decisions.noModel")), el("span", { class: "soft" }, decision.policy),
    el("span", { class: "soft" }, isKnown(decision.prompt_tokens) ? t("decisions.tokens", { count: count(decision.prompt_tokens) }) : ""),
    el("code", { class: "soft w2" }, decision.request_id));
  const parts = [candidatesOf(decision)];
  const failures = Object.entries(decision.failures ?? {});
  if (failures.length > 0) {
    parts.push(el("p", {}, t("decisions.failed", { names: failures.map(([name, code]) => `${name} (${code})`).join(", ") })));
  }
  if (decision.left_out > 0) parts.push(el("p", { class: "soft" }, t("decisions.leftOut", { count: decision.left_out })));
  if (decision.shadow) parts.push(shadowOf(decision));
  return el("details", { "data-id": idOf(decision), open: isOpen }, summary, el("div", { class: "frame", tabindex: "0", role: "region", label: "decisions.candidates" }, ...parts));
}

function candidatesOf({ candidates, chosen }) {
  const terms = Object.keys(candidates[0] ?? {}).filter((name) => name !== "name");
  const inSeconds = terms.includes("before") && terms.includes("own");
  const compared = terms.at(-1);
  const most = Math.max(1e-9, ...candidates.map((one) => (inSeconds ? sumOf(one) : Math.abs(one[compared] ?? 0))));
  const head = ["decisions.candidate", null, ...terms].map((name) =>
    (name === null ? el("th", { class: "wide", text: "decisions.bar" }) : el("th", { scope: "col", class: terms.includes(name) ? "n" : "" }, termName(name))));
  const rows = candidates.map((one) => el("tr", { class: one.name === chosen ? "chosen" : "" },
    el("th", { scope: "row" }, one.name === chosen ? `${one.name} ✓` : one.name),
    el("td", { class: "wide" }, inSeconds ? stacked(one, most) : single(Math.abs(one[compared] ?? 0) / most)),
    ...terms.map((name) => el("td", { class: "n" }, valueOf(name, one[name], inSeconds)))));
  return el("table", { class: "candidates" }, el("caption", { class: "for-readers", text: "decisions.candidates" }),
    el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
}

function termName(name) {
  if (hasText(name)) return t(name);
  return hasText(`term.${name}`) ? t(`term.${name}`) : name.replaceAll("_", " ");
}

function valueOf(name, value, inSeconds) {
  if (!isKnown(value)) return UNKNOWN;
  if (inSeconds && !ABOUT.slice(0, 2).includes(name)) return seconds(value);
  return Number.isInteger(value) || value >= 1000 ? count(value) : value.toFixed(3);
}

function sumOf(candidate) {
  return PARTS.reduce((sum, part) => sum + Math.max(0, candidate[part] ?? 0), 0);
}

// One bar out of the terms, each at its share of the longest bar.
function stacked(candidate, most) {
  let x = 0;
  const rects = PARTS.map((part) => {
    const width = (Math.max(0, candidate[part] ?? 0) / most) * 100;
    x += width;
    return svg("rect", { class: `part-${part}`, x: (x - width).toFixed(2), width: width.toFixed(2), height: 8 },
      svg("title", {}, `${termName(part)}: ${seconds(candidate[part])}`));
  });
  return svg("svg", { viewBox: "0 0 100 8", class: "bar", preserveAspectRatio: "none", "aria-hidden": "true" }, ...rects);
}

function single(share) {
  const root = bar();
  setBar(root, share);
  return root;
}

// What another policy would have chosen, if one runs in the shadow.
function shadowOf({ shadow, chosen }) {
  const agrees = shadow.chosen === chosen;
  const words = el("p", {}, t(agrees ? "decisions.shadowAgrees" : "decisions.shadowDiffers", { policy: shadow.policy, name: shadow.chosen }));
  return el("div", { class: "shadow" }, words, ...(shadow.candidates?.length ? [candidatesOf(shadow)] : []));
}
