// Receives snapshots of the proxy. Connects again after failures, and rests while the tab is hidden.
import { serverSentEvents } from "./sse.js";

const PATH = "dashboard/feed";
const FIRST_WAIT_MS = 500, LONGEST_WAIT_MS = 15_000;
const STALE_MS = 4000; // a snapshot comes every second
const DEAD_MS = 12_000; // without a byte for so long, the connection is given up
const HIDDEN_MS = 5000; // a short look at another tab costs no reconnection

export class Feed {
  // headers() returns the headers of a request; onSnapshot(snapshot) and onState(state) are told of news.
  // A state: { name: connecting | live | stale | paused, since: ms or null, status: of a refusal or null }.
  constructor(headers, onSnapshot, onState) {
    this.headers = headers;
    this.onSnapshot = onSnapshot;
    this.onState = onState;
    this.wait = FIRST_WAIT_MS;
    this.latestAt = null;
    this.heardAt = 0;
    this.status = null;
    this.isPaused = false;
    this.isHidden = false;
    this.attempt = null;
  }

  start() {
    document.addEventListener("visibilitychange", () => this.followVisibility());
    setInterval(() => this.watch(), 1000);
    this.connect();
  }

  // Connect at once, for example with another key.
  restart() {
    this.wait = FIRST_WAIT_MS;
    this.connect();
  }

  setPaused(isPaused) {
    if (this.isPaused === isPaused) return;
    this.isPaused = isPaused;
    if (isPaused) {
      this.attempt?.abort();
      this.tell("paused");
    } else {
      this.restart();
    }
  }

  followVisibility() {
    clearTimeout(this.hiding);
    if (!document.hidden) {
      const wasHidden = this.isHidden;
      this.isHidden = false;
      if (wasHidden) this.restart();
    } else {
      this.hiding = setTimeout(() => {
        this.isHidden = true;
        this.attempt?.abort();
      }, HIDDEN_MS);
    }
  }

  async connect() {
    clearTimeout(this.retry);
    this.attempt?.abort();
    if (this.isPaused || this.isHidden) return;
    const attempt = (this.attempt = new AbortController());
    this.heardAt = performance.now();
    try {
      const reply = await fetch(PATH, { headers: this.headers(), cache: "no-store", signal: attempt.signal });
      this.status = reply.ok ? null : reply.status;
      if (reply.ok) await this.read(reply, attempt);
      else reply.body?.cancel();
    } catch {
      // unreachable, broken or given up: as after the end of the stream
    }
    if (attempt === this.attempt && !attempt.signal.aborted) this.connectLater();
  }

  async read(reply, attempt) {
    for await (const event of serverSentEvents(reply.body)) {
      if (attempt.signal.aborted) return;
      this.heardAt = performance.now();
      if (event.event !== "snapshot") continue;
      const snapshot = JSON.parse(event.data);
      this.wait = FIRST_WAIT_MS;
      this.latestAt = Date.now();
      this.tell("live");
      this.onSnapshot(snapshot);
    }
  }

  connectLater() {
    this.tell(this.latestAt === null ? "connecting" : "stale");
    this.retry = setTimeout(() => this.connect(), this.wait * (0.75 + Math.random() / 2));
    this.wait = Math.min(this.wait * 2, LONGEST_WAIT_MS);
  }

  watch() {
    if (this.isPaused || this.isHidden || this.attempt === null) return;
    const silence = performance.now() - this.heardAt;
    if (silence > STALE_MS && this.latestAt !== null) this.tell("stale");
    if (silence > DEAD_MS && !this.attempt.signal.aborted) {
      this.attempt.abort();
      this.connectLater();
    }
  }

  tell(name) {
    this.onState({ name, since: this.latestAt, status: this.status });
  }
}
