// What is known of the proxy: the latest snapshot, and what came only in earlier ones.

const MOST_EVENTS = 500;
const KEPT = ["history", "usage"]; // sent only when they change

export class Model {
  constructor() {
    this.snapshot = null;
    this.events = []; // the newest first
  }

  apply(snapshot) {
    if (!snapshot.complete && this.snapshot !== null) {
      for (const name of KEPT) snapshot[name] ??= this.snapshot[name];
    }
    // Ids of events are those of one process: a complete snapshot begins anew.
    this.events = merged(snapshot.complete ? [] : this.events, snapshot.events ?? []);
    this.snapshot = snapshot;
  }

  backend(name) {
    return this.snapshot?.backends.find((one) => one.name === name);
  }

  get isOperator() {
    return this.snapshot?.audience === "operator";
  }
}

// An event that is repeated comes again with its id and a higher count.
function merged(known, news) {
  if (news.length === 0) return known;
  const byId = new Map([...known, ...news].map((event) => [event.id, event]));
  return [...byId.values()].sort((one, other) => other.id - one.id).slice(0, MOST_EVENTS);
}
