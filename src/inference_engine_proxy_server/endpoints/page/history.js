// The last 60 minutes as charts.
import { Chart } from "./chart.js";
import { el, setHidden } from "./dom.js";
import { count, rate, seconds } from "./format.js";

export class History {
  constructor() {
    this.charts = [
      new Chart("history.requests", [{ key: "requests_per_second", text: "history.perSecond" }], rate),
      new Chart("history.errors", [{ key: "errors_per_second", text: "history.perSecond" }], rate),
      new Chart("history.queue", [{ key: "queue", text: "history.waiting" }], count),
      new Chart("history.ttft", [{ key: "ttft_p50", text: "history.p50" }, { key: "ttft_p95", text: "history.p95" }], seconds),
      new Chart("history.tokensOut", [{ key: "tokens_out_per_second", text: "history.perSecond" }], rate),
      new Chart("history.tokensIn", [{ key: "tokens_in_per_second", text: "history.perSecond" }], rate),
    ];
    this.empty = el("p", { class: "empty", text: "history.none" });
    this.grid = el("div", { class: "charts" }, ...this.charts.map((one) => one.root));
    this.root = el("section", { label: "view.history" }, this.empty, this.grid);
  }

  render(model) {
    const { history } = model.snapshot;
    const hasValues = Boolean(history?.requests_per_second?.length);
    setHidden(this.empty, hasValues);
    setHidden(this.grid, !hasValues);
    if (hasValues) for (const chart of this.charts) chart.render(history);
  }
}
