// Tokens and requests by model and by key, since the proxy started.
import { bar, setBar } from "./bars.js";
import { cells, el, Rows, setHidden, setText, table } from "./dom.js";
import { count, share, UNKNOWN } from "./format.js";
import { t } from "./text.js";

const COLUMNS = [
  ["name", ""], ["requests", "n"], ["input", "n w1"], ["cached", "n w1"], ["cachedShare", "n w2"], ["output", "n"], ["bar", "w1"],
].map(([key, name]) => ({ key, name: `${name} col-${key}`, head: `usage.${key}` }));

export class Usage {
  constructor() {
    this.tables = [new UsageTable("usage.byModel", "by_model"), new UsageTable("usage.byKey", "by_key")];
    this.root = el("div", {}, ...this.tables.map((one) => one.root));
  }

  render(model) {
    for (const one of this.tables) one.render(model.snapshot.usage ?? {});
  }
}

class UsageTable {
  constructor(caption, member) {
    this.member = member;
    this.table = table(caption, COLUMNS, "usage");
    this.rows = new Rows(this.table.body, newRow, (row, one) => this.show(row, one));
    this.empty = el("p", { class: "empty", text: "usage.none" });
    this.root = el("section", { label: caption }, el("h2", { text: caption }), this.table.frame, this.empty);
  }

  render(usage) {
    const rows = [...(usage[this.member] ?? [])].sort((one, other) => tokensOf(other) - tokensOf(one));
    this.all = rows.reduce((sum, one) => sum + tokensOf(one), 0);
    this.rows.show(rows, (one) => one.name ?? "");
    setHidden(this.table.frame, rows.length === 0);
    setHidden(this.empty, rows.length > 0);
  }

  show(row, one) {
    setText(row.name, one.name || t("usage.noName"));
    setText(row.requests, count(one.requests));
    setText(row.input, count(one.input_tokens));
    setText(row.cached, count(one.cached_tokens));
    setText(row.cachedShare, one.input_tokens > 0 ? share(one.cached_tokens / one.input_tokens) : UNKNOWN);
    setText(row.output, count(one.output_tokens));
    setBar(row.bar.firstChild, tokensOf(one) / this.all);
  }
}

function newRow() {
  const row = cells(COLUMNS);
  row.bar.append(bar());
  return row;
}

function tokensOf(one) {
  return (one.input_tokens ?? 0) + (one.output_tokens ?? 0);
}
