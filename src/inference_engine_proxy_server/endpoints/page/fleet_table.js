// The fleet: a dense table, problems first.
import { el, Rows, setAttribute, setHidden, setText } from "./dom.js";
import { EventList } from "./event_list.js";
import { COLUMNS, countVisible } from "./fleet_columns.js";
import { FleetMap } from "./fleet_map.js";
import { FleetOrder } from "./fleet_order.js";
import { fillRow, newRow } from "./fleet_row.js";
import { recall, remember } from "./memory.js";
import { isProblem } from "./problems.js";
import { Slices } from "./slices.js";
import { hasText, t } from "./text.js";

const GROUPS = ["none", "model", "tier", "state"];
const ROW_PIXELS = 16, ROWS_AROUND = 20;
const MOST_ROOMY = 12; // backends; more are shown densely
const MOST_EVENTS = 8;

export class FleetTable {
  // openBackend(name) shows a backend with its commands.
  constructor(openBackend) {
    this.openBackend = openBackend;
    this.order = new FleetOrder();
    this.order.group = GROUPS.includes(recall("group")) ? recall("group") : "none";
    this.filter = el("input", { type: "search", label: "fleet.filter", ghost: "fleet.filter", autocomplete: "off",
      on: { input: () => this.apply({ filter: this.filter.value }) } });
    this.grouping = el("select", { label: "fleet.group", on: { change: () => this.setGroup(this.grouping.value) } },
      ...GROUPS.map((name) => el("option", { value: name, text: `fleet.group.${name}` })));
    this.grouping.value = this.order.group;
    this.count = el("span", { class: "soft" });
    this.held = el("span", { class: "soft", text: "fleet.held" });
    this.map = new FleetMap(openBackend);
    this.heads = COLUMNS.map((column) => this.head(column));
    this.slices = new Slices();
    this.table = el("table", { class: "fleet" }, el("caption", { class: "for-readers", text: "fleet.caption" }),
      el("colgroup", {}, ...COLUMNS.map((one) => el("col", { class: `col-${one.key} ${one.name ?? ""}` }))),
      el("thead", {}, el("tr", {}, ...this.heads.map(({ root }) => root))));
    this.empty = el("p", { class: "empty", text: "fleet.none" });
    this.events = new EventList();
    this.news = el("section", { label: "events.latest" }, el("h2", { text: "events.latest" }), this.events.root);
    this.root = el("section", { label: "view.fleet" },
      el("div", { class: "toolbar" }, this.filter, this.grouping, this.count, this.held, this.map.root), this.table, this.empty, this.news);
    this.body = new Rows(this.table, (item) => item.create(), (row, item) => item.update(row), this.table.tHead);
    this.followPointer();
  }

  head(column) {
    const button = el("button", { type: "button", text: `column.${column.key}`, hint: `column.${column.key}.hint`,
      on: { click: () => this.apply({ sort: column.key }) } });
    return { key: column.key, root: el("th", { scope: "col", class: column.name }, button) };
  }

  followPointer() {
    const hold = () => {
      this.order.isHeld = this.table.matches(":hover") || this.table.querySelector("tbody :focus-visible") !== null;
    };
    for (const event of ["pointerenter", "pointerleave", "focusin", "focusout"]) {
      this.table.addEventListener(event, () => setTimeout(hold));
    }
    this.table.addEventListener("keydown", (event) => this.move(event));
  }

  apply({ filter, sort }) {
    if (filter !== undefined) this.order.filter = filter.trim();
    if (sort !== undefined) this.order.sortBy(sort);
    this.order.reset();
    if (this.model) this.render(this.model);
  }

  setGroup(name) {
    this.order.group = this.grouping.value = name;
    remember("group", name);
    this.apply({});
  }

  nextGroup() {
    this.setGroup(GROUPS[(GROUPS.indexOf(this.order.group) + 1) % GROUPS.length]);
  }

  render(model) {
    this.model = model;
    const { backends, at } = model.snapshot;
    const layout = { scale: Math.max(1, ...backends.flatMap((one) => one.recent ?? [])), columns: countVisible() };
    const items = [];
    for (const group of this.order.groups(backends, at)) {
      if (group.name !== null) items.push(this.section(group, layout));
      for (const backend of group.backends) items.push(this.line(backend, at, layout));
    }
    this.body.show(items, (item) => item.key);
    this.slices.run(this.visibleFirst(items.filter((item) => item.isBackend)), (item) => item.fill());
    this.showHeads();
    this.map.render(backends);
    const isSmall = backends.length <= MOST_ROOMY;
    setAttribute(this.map.root, "class", isSmall ? "map small" : "map"); // the table itself fits one screen
    setAttribute(this.table, "class", isSmall ? "fleet roomy" : "fleet");
    this.events.render(model.events.slice(0, MOST_EVENTS), at);
    setHidden(this.news, model.events.length === 0);
    const shown = items.filter((item) => item.isBackend).length;
    setText(this.count, t("fleet.count", { shown, total: backends.length, count: backends.length }));
    setHidden(this.held, !this.order.isBehind);
    setHidden(this.empty, shown > 0);
    this.keepOneTabStop();
  }

  line(backend, now, layout) {
    const key = `backend ${backend.name}`;
    return {
      key,
      isBackend: true,
      create: () => {
        const row = newRow(this.openBackend);
        fillRow(row, backend, now, layout);
        return row;
      },
      update: () => {},
      fill: () => fillRow(this.body.byKey.get(key), backend, now, layout),
    };
  }

  // What somebody looks at is up to date at once, the rest within some frames.
  visibleFirst(items) {
    const top = this.table.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(-top / ROW_PIXELS) - ROWS_AROUND);
    return [...items.slice(first), ...items.slice(0, first)];
  }

  section(group, { columns }) {
    return {
      key: `group ${group.name}`,
      create: () => {
        const words = el("th", { scope: "rowgroup" });
        return { root: el("tbody", { class: "group" }, el("tr", {}, words)), words };
      },
      update: (row) => {
        setAttribute(row.words, "colspan", columns);
        setText(row.words, this.titleOf(group));
      },
    };
  }

  titleOf({ name, backends }) {
    const problems = backends.filter(isProblem).length;
    const numbers = t("fleet.groupCount", { count: backends.length, problems });
    if (this.order.group === "tier") return `${t("fleet.tier", { tier: name })} · ${numbers}`;
    const label = this.order.group === "state" && hasText(`state.${name}`) ? t(`state.${name}`) : name;
    return `${label} · ${numbers}`;
  }

  showHeads() {
    for (const { key, root } of this.heads) {
      const column = COLUMNS.find((one) => one.key === key);
      const isDown = Boolean(column.descends) !== this.order.isReversed;
      setAttribute(root, "aria-sort", this.order.column !== key ? null : isDown ? "descending" : "ascending");
    }
  }

  // The table is one stop of the Tab key; arrows move inside.
  keepOneTabStop() {
    const buttons = this.buttons();
    const current = buttons.find((one) => one.tabIndex === 0);
    if (current === undefined && buttons.length > 0) buttons[0].tabIndex = 0;
  }

  buttons() {
    return [...this.table.querySelectorAll("button.name")];
  }

  move(event) {
    if (!event.target.classList.contains("name")) return;
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.focusNext(event.target, step);
  }

  focusNext(from, step) {
    const buttons = this.buttons();
    const next = buttons[buttons.indexOf(from) + step];
    if (next === undefined) return;
    for (const one of buttons) one.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  focusRows() {
    (this.buttons().find((one) => one.tabIndex === 0) ?? this.filter).focus();
  }
}
