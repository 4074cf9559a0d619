// Above every view: is anything wrong, and where? A sentence, and the totals.
import { Differences } from "./differences.js";
import { el, setAttribute, setHidden, setText } from "./dom.js";
import { count, ofLimit, rate, seconds } from "./format.js";
import { glyph, setGlyph } from "./glyphs.js";
import { verdict } from "./problems.js";
import { t } from "./text.js";

const TOTALS = [
  ["available", (fleet) => ofLimit(fleet.available, fleet.total)],
  ["inFlight", (fleet) => ofLimit(fleet.in_flight, fleet.slots)],
  ["queue", (fleet) => ofLimit(fleet.queue, fleet.queue_limit)],
  ["requests", (fleet) => rate(fleet.requests_per_second)],
  ["errors", (fleet) => rate(fleet.errors_per_second)],
  ["tokensIn", (fleet) => rate(fleet.tokens_in_per_second)],
  ["tokensOut", (fleet) => rate(fleet.tokens_out_per_second)],
  ["ttft50", (fleet) => seconds(fleet.ttft_p50)],
  ["ttft95", (fleet) => seconds(fleet.ttft_p95)],
];

export class Summary {
  // announce(text) tells screen readers.
  constructor(root, announce) {
    this.root = root;
    this.announce = announce;
    this.mark = glyph("ok");
    this.sentence = el("span");
    this.about = el("p", { class: "soft" });
    this.differences = new Differences();
    this.values = TOTALS.map(([key]) => ({ key, value: el("dd") }));
    root.append(
      el("div", { class: "verdict" }, el("p", { class: "sentence" }, this.mark, this.sentence), this.about),
      el("dl", { class: "totals" }, ...this.values.map(({ key, value }) =>
        el("div", { class: `total-${key}` }, el("dt", { text: `total.${key}`, hint: `total.${key}.hint` }), value))),
      this.differences.root,
    );
  }

  render(model) {
    const { snapshot } = model;
    const { level, text } = verdict(snapshot);
    setHidden(this.root, false);
    setAttribute(this.root, "class", `is-${level}`);
    setGlyph(this.mark, level);
    if (this.sentence.textContent !== text) this.announce(text);
    setText(this.sentence, text);
    setText(this.about, t("summary.about", {
      version: snapshot.version,
      policy: snapshot.policy,
      count: snapshot.workers?.count ?? 1,
      uptime: seconds(snapshot.at - snapshot.started_at),
    }));
    this.differences.render(snapshot.differences);
    TOTALS.forEach(([, show], at) => setText(this.values[at].value, show(snapshot.fleet)));
    const { available, total } = snapshot.fleet;
    document.title = `${level === "ok" ? "" : "! "}${count(available)}/${count(total)} – ${t("page.title")}`;
  }
}
