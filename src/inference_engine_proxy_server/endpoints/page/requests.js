// The requests that are in the proxy now, and its queue.
import { setBar, bar } from "./bars.js";
import { cancel } from "./commands.js";
import { cells, el, Rows, setAttribute, setHidden, setText, table } from "./dom.js";
import { count, rate, seconds, sentence, UNKNOWN } from "./format.js";
import { glyph, setGlyph } from "./glyphs.js";
import { t } from "./text.js";

const COLUMNS = [
  ["phase", ""], ["id", "w2"], ["model", ""], ["key", "w1"], ["backend", ""], ["path", "w4"], ["tokens", "n w1"],
  ["speed", "n w2"], ["age", "n"], ["resumes", "n w3"], ["why", "w2 long"], ["cancel", ""],
].map(([key, name]) => ({ key, name: `${name} col-${key}`, head: `request.${key}` }));
const QUEUE = [["position", "n"], ["id", "w2"], ["model", ""], ["key", ""], ["wait", "n"], ["age", "n"], ["cancel", ""]]
  .map(([key, name]) => ({ key, name: `${name} col-${key}`, head: `request.${key}` }));

export class Requests {
  constructor() {
    this.filter = el("input", { type: "search", label: "requests.filter", ghost: "requests.filter", autocomplete: "off",
      on: { input: () => this.render(this.model) } });
    this.count = el("span", { class: "soft" });
    this.table = table("requests.caption", COLUMNS, "requests");
    this.rows = new Rows(this.table.body, () => newRow(COLUMNS), showRequest);
    this.empty = el("p", { class: "empty", text: "requests.none" });
    this.queued = table("queue.caption", QUEUE, "requests queue");
    this.queuedRows = new Rows(this.queued.body, () => newRow(QUEUE), showQueued);
    this.queueAbout = el("p", { class: "soft" });
    this.keys = el("ul", { class: "by-key" });
    this.keyRows = new Rows(this.keys, newKey, (row, one) => showKey(row, one, this.most));
    this.root = el("div", {},
      el("section", { label: "requests.caption" }, el("div", { class: "toolbar" }, el("h2", { text: "requests.caption" }),
        this.filter, this.count), this.table.frame, this.empty),
      el("section", { label: "queue.caption" }, el("div", { class: "toolbar" }, el("h2", { text: "queue.caption" }), this.queueAbout),
        this.keys, this.queued.frame));
  }

  render(model) {
    this.model = model;
    const { requests, queue, fleet } = model.snapshot;
    const shown = distinct(requests?.shown ?? []).filter((one) => this.accepts(one));
    // By age, so that no row moves: the phase of a request changes, and others end.
    const running = shown.filter((one) => one.phase !== "queued").sort((one, other) => other.age - one.age);
    const waiting = shown.filter((one) => one.phase === "queued").sort((one, other) => one.position - other.position);
    this.rows.show(running, (one) => one.row);
    this.queuedRows.show(waiting, (one) => one.row);
    setHidden(this.table.frame, running.length === 0);
    setHidden(this.empty, running.length > 0);
    setHidden(this.queued.frame, waiting.length === 0);
    setText(this.count, t("requests.count", { shown: shown.length, total: requests?.total ?? 0 }));
    setText(this.queueAbout, fleet.queue > 0
      ? t("queue.about", { count: fleet.queue, limit: count(fleet.queue_limit), wait: seconds(queue?.expected_wait) })
      : t("queue.empty"));
    this.most = Math.max(1, ...(queue?.by_key ?? []).map((one) => one.requests));
    this.keyRows.show(queue?.by_key ?? [], (one) => one.key ?? "");
  }

  accepts(one) {
    const text = [one.id, one.model, one.alias, one.key, one.backend, one.path, one.phase].join(" ").toLowerCase();
    return this.filter.value.toLowerCase().trim().split(/\s+/).every((word) => text.includes(word));
  }
}

// Clients choose ids, and may use one several times.
function distinct(requests) {
  const seen = new Map();
  return requests.map((one) => {
    seen.set(one.id, (seen.get(one.id) ?? 0) + 1);
    return { ...one, row: `${one.id} ${seen.get(one.id)}` };
  });
}

function newRow(columns) {
  const row = cells(columns);
  const button = el("button", { type: "button", text: "request.cancel.verb", on: { click: () => cancel(row.request.id) } });
  row.cancel.append(button);
  row.button = button;
  if (row.phase) row.phase.append(glyph("decode"), el("span"));
  return row;
}

function showRequest(row, one) {
  showCommon(row, one);
  setGlyph(row.phase.firstChild, one.phase);
  setText(row.phase.lastChild, t(`phase.${one.phase}`));
  setText(row.backend, one.backend ?? UNKNOWN);
  setText(row.path, one.path ?? UNKNOWN);
  setText(row.tokens, count(one.tokens));
  setText(row.speed, rate(one.tokens_per_second));
  setText(row.resumes, one.resumes ? count(one.resumes) : UNKNOWN);
  const reason = one.shadow ? t("request.shadow", { why: sentence(one.why), name: one.shadow }) : sentence(one.why);
  setText(row.why, reason);
  setAttribute(row.why, "title", reason);
}

function showQueued(row, one) {
  showCommon(row, one);
  setText(row.position, count(one.position));
  setText(row.wait, seconds(one.expected_wait));
}

function showCommon(row, one) {
  row.request = one;
  setText(row.id, one.id);
  setAttribute(row.id, "title", one.id);
  const name = one.model ?? UNKNOWN;
  const words = one.alias ? t("request.alias", { alias: one.alias, model: name }) : name;
  setText(row.model, words);
  setAttribute(row.model, "title", words);
  setText(row.key, one.key ?? UNKNOWN);
  setText(row.age, seconds(one.age));
  setAttribute(row.button, "aria-label", t("cancel.title", { id: one.id }));
}

function newKey() {
  const name = el("span"), length = bar(), number = el("span", { class: "n" });
  return { root: el("li", {}, name, length, number), name, length, number };
}

function showKey(row, one, most) {
  setText(row.name, one.key ?? t("queue.noKey"));
  setBar(row.length, one.requests / most);
  setText(row.number, count(one.requests));
}
