// A line chart over time as SVG. The pointer or the arrow keys read values; a sentence says the rest.
import { el, setAttribute, setText, svg } from "./dom.js";
import { clock } from "./format.js";
import { t } from "./text.js";

const WIDTH = 600, HEIGHT = 120, BOTTOM = HEIGHT - 1;
const NAMES = ["first", "second"];

export class Chart {
  // series: [{ key: of the history, text: key of its name }]; format(value) gives text.
  constructor(title, series, format) {
    this.series = series;
    this.format = format;
    this.title = title;
    this.at = null; // the position that is read; null: the latest
    this.areas = series.map((_, at) => svg("path", { class: `area ${NAMES[at]}` }));
    this.lines = series.map((_, at) => svg("path", { class: `line ${NAMES[at]}`, "vector-effect": "non-scaling-stroke" }));
    this.cursor = svg("path", { class: "cursor", "vector-effect": "non-scaling-stroke" });
    this.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", tabindex: 0 },
      svg("path", { class: "grid", d: `M0 .5H${WIDTH}M0 60H${WIDTH}M0 ${BOTTOM}.5H${WIDTH}`, "vector-effect": "non-scaling-stroke" }),
      ...this.areas, ...this.lines, this.cursor);
    this.values = series.map(() => el("output"));
    this.time = el("span", { class: "soft" });
    this.top = el("span", { class: "top soft" });
    this.begin = el("span", { class: "soft" });
    this.root = el("figure", { class: "chart" }, el("figcaption", {}, el("h3", { text: title }),
      ...series.map((one, at) => el("span", { class: `legend ${NAMES[at]}` }, el("span", { text: one.text }), this.values[at])), this.time),
    el("div", { class: "plot" }, this.top, this.picture), el("div", { class: "axis" }, this.begin, el("span", { class: "soft", text: "history.now" })));
    this.read();
  }

  read() {
    this.picture.addEventListener("pointermove", (event) => {
      const { left, width } = this.picture.getBoundingClientRect();
      this.move(Math.round(((event.clientX - left) / width) * (this.length - 1)));
    });
    this.picture.addEventListener("pointerleave", () => this.move(null));
    this.picture.addEventListener("blur", () => this.move(null));
    this.picture.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      this.move((this.at ?? this.length - 1) + step);
    });
  }

  move(at) {
    this.at = at === null ? null : Math.max(0, Math.min(this.length - 1, at));
    this.showValues();
  }

  render(history) {
    if (this.history === history) return;
    this.history = history;
    this.length = history[this.series[0].key].length;
    const every = this.series.flatMap(({ key }) => history[key]).filter(Number.isFinite);
    this.most = Math.max(1e-9, ...every);
    this.series.forEach(({ key }, at) => {
      const path = this.path(history[key]);
      setAttribute(this.lines[at], "d", path.line);
      setAttribute(this.areas[at], "d", path.area);
    });
    this.showValues();
  }

  // Unknown values are gaps.
  path(values) {
    let line = "", area = "", begin = null;
    const step = WIDTH / Math.max(1, values.length - 1);
    values.forEach((value, at) => {
      const x = (at * step).toFixed(1);
      if (Number.isFinite(value)) {
        const point = `${x} ${(BOTTOM - (value / this.most) * (HEIGHT - 8)).toFixed(1)}`;
        area += begin === null ? `M${x} ${BOTTOM}L${point}` : `L${point}`;
        line += begin === null ? `M${point}` : `L${point}`;
        begin ??= x;
      }
      if (begin !== null && (!Number.isFinite(values[at + 1]))) {
        area += `L${x} ${BOTTOM}Z`;
        begin = null;
      }
    });
    return { line, area };
  }

  showValues() {
    if (this.history === undefined) return;
    const { step, end } = this.history;
    const at = this.at ?? this.length - 1;
    this.series.forEach(({ key }, number) => setText(this.values[number], this.format(this.history[key][at])));
    setText(this.time, clock(end - (this.length - 1 - at) * step, end));
    setText(this.top, this.format(this.most));
    setText(this.begin, clock(end - this.length * step, end));
    const x = ((at / Math.max(1, this.length - 1)) * WIDTH).toFixed(1);
    setAttribute(this.cursor, "d", this.at === null ? "" : `M${x} 0V${HEIGHT}`);
    setAttribute(this.picture, "aria-label", this.describe());
  }

  describe() {
    const parts = this.series.map(({ key, text }) => {
      const known = this.history[key].filter(Number.isFinite);
      if (known.length === 0) return t("chart.unknown", { name: t(text) });
      return t("chart.summary", { name: t(text), latest: this.format(known.at(-1)), least: this.format(Math.min(...known)),
        most: this.format(Math.max(...known)) });
    });
    return `${t(this.title)}. ${parts.join(" ")}`;
  }
}
