// Which backends the table shows, in which order. Values change every second; rows do not move with each of them.
import { COLUMNS } from "./fleet_columns.js";
import { gravity } from "./problems.js";

const RESORT_SECONDS = 10; // of an order by a value that changes all the time

export class FleetOrder {
  constructor() {
    this.filter = "";
    this.group = "none"; // none | model | tier | state
    this.column = null; // null: problems first
    this.isReversed = false;
    this.isHeld = false; // somebody points at a row, or has the focus on one
    this.isBehind = false; // the order would be another one if it were not held
    this.names = [];
    this.signature = "";
    this.sortedAt = 0;
  }

  sortBy(key) {
    const isAgain = this.column === key;
    if (isAgain && this.isReversed) this.column = null;
    else this.column = key;
    this.isReversed = isAgain && !this.isReversed;
    this.signature = "";
  }

  // Forget the order, because somebody chose another one.
  reset() {
    this.signature = "";
  }

  // Groups of backends: [{ name: null or text, backends }].
  groups(backends, now) {
    const shown = backends.filter((one) => this.accepts(one));
    this.sort(shown, now);
    const places = new Map(this.names.map((name, at) => [name, at]));
    shown.sort((one, other) => places.get(one.name) - places.get(other.name));
    if (this.group === "none") return [{ name: null, backends: shown }];
    const byName = new Map();
    for (const one of shown) {
      const name = this.groupOf(one);
      if (!byName.has(name)) byName.set(name, []);
      byName.get(name).push(one);
    }
    return [...byName].map(([name, members]) => ({ name, backends: members }))
      .sort((one, other) => one.name.localeCompare(other.name, "en", { numeric: true }));
  }

  accepts(one) {
    if (this.filter === "") return true;
    const text = [one.name, one.url, one.shown_state, one.engine, one.engine_version, `tier${one.tier}`, one.reason,
      ...one.models].join(" ").toLowerCase();
    return this.filter.toLowerCase().split(/\s+/).every((word) => text.includes(word));
  }

  groupOf(one) {
    if (this.group === "tier") return String(one.tier);
    return this.group === "state" ? one.shown_state : one.models.join(", ") || "–";
  }

  sort(shown, now) {
    // The order without a column depends only on what is rare: other backends, other states.
    const rare = this.column === null ? shown.map((one) => `${one.name} ${gravity(one)}`) : shown.map((one) => one.name);
    const signature = rare.sort().join("\n");
    this.isBehind = this.signature !== "" && this.isHeld && signature !== this.signature;
    const isDue = this.column !== null && now - this.sortedAt >= RESORT_SECONDS;
    if (this.signature !== "" && (this.isHeld || (signature === this.signature && !isDue))) {
      const known = new Set(this.names);
      this.names.push(...shown.map((one) => one.name).filter((name) => !known.has(name)));
      return;
    }
    this.signature = signature;
    this.sortedAt = now;
    this.names = this.sorted(shown).map((one) => one.name);
  }

  sorted(shown) {
    const column = COLUMNS.find((one) => one.key === this.column);
    if (column === undefined) return [...shown].sort((one, other) => gravity(other) - gravity(one));
    const sign = Boolean(column.descends) === this.isReversed ? 1 : -1;
    return [...shown].sort((one, other) => compare(column.sort(one), column.sort(other), sign));
  }
}

// The unknown always comes last.
function compare(one, other, sign) {
  if (one === other) return 0;
  if (one === null || one === undefined) return 1;
  if (other === null || other === undefined) return -1;
  if (typeof one === "string") return sign * one.localeCompare(other, "en", { numeric: true });
  return sign * (one - other);
}
