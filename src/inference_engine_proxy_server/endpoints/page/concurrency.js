// Many requests at once: how do they spread over the backends, and how long do they take?
import { bar, setBar } from "./bars.js";
import { chat } from "./chat.js";
import { el, Rows, setAttribute, setText } from "./dom.js";
import { rate, seconds } from "./format.js";
import { burstCommand, ShellCommand } from "./shell_command.js";
import { t } from "./text.js";

// A browser opens six connections to a server over HTTP/1.1. One is for the feed, one for commands.
const MOST_AT_ONCE = 4;
const MOST_REQUESTS = 200;

export class Concurrency {
  constructor(model, announce) {
    this.model = model;
    this.announce = announce;
    this.number = el("input", { id: "burst-number", type: "number", min: 1, max: MOST_REQUESTS, value: 16 });
    this.limit = el("input", { id: "burst-limit", type: "number", min: 1, max: 10_000, value: 64 });
    this.prompt = el("input", { id: "burst-prompt", type: "text", value: "Count from 1 to 50." });
    this.starting = el("button", { type: "submit", class: "primary", text: "burst.start" });
    this.stopping = el("button", { type: "button", text: "chat.stop", disabled: true, on: { click: () => this.stopper?.abort() } });
    this.about = el("p", { class: "soft" });
    this.result = el("p", { class: "burst-result" });
    this.list = el("ul", { class: "by-key spread" });
    this.rows = new Rows(this.list, newShare, (row, one) => showShare(row, one, this.most));
    this.command = new ShellCommand("burst.more");
    this.form = el("form", { class: "toolbar" }, el("label", { for: "burst-number", text: "burst.number" }), this.number,
      el("label", { for: "burst-limit", text: "chat.limit" }), this.limit, el("label", { for: "burst-prompt", text: "burst.prompt" }), this.prompt,
      this.starting, this.stopping);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    this.root = el("section", { label: "burst.title" }, el("h2", { text: "burst.title" }), this.form, this.about, this.result, this.list,
      this.command.root);
    this.prompt.addEventListener("input", () => this.showCommand());
  }

  render(needsKey) {
    this.needsKey = needsKey;
    setText(this.about, Number.isFinite(atOnce()) ? t("burst.atOnce", { count: atOnce() }) : t("burst.allAtOnce"));
    this.showCommand();
  }

  async run() {
    if (this.stopper) return;
    const total = Math.max(1, Math.min(MOST_REQUESTS, Number(this.number.value) || 1));
    this.stopper = new AbortController();
    this.starting.disabled = true;
    this.stopping.disabled = false;
    this.done = [];
    this.failures = [];
    this.left = total;
    const began = performance.now();
    const hands = Array.from({ length: Math.min(total, atOnce()) }, () => this.work());
    const clock = setInterval(() => this.show(total, began), 250);
    await Promise.all(hands);
    clearInterval(clock);
    this.show(total, began);
    this.announce(this.result.textContent);
    this.stopper = null;
    this.starting.disabled = false;
    this.stopping.disabled = true;
  }

  async work() {
    const { signal } = this.stopper;
    while (this.left > 0 && !signal.aborted) {
      this.left -= 1;
      try {
        this.done.push(await chat({ model: this.model(), messages: this.messages(), maxTokens: Number(this.limit.value), signal }));
      } catch (error) {
        if (!signal.aborted) this.failures.push(error);
      }
    }
  }

  messages() {
    return [{ role: "user", content: this.prompt.value }];
  }

  show(total, began) {
    const times = this.done.map((one) => one.first).sort((one, other) => one - other);
    const tokens = this.done.reduce((sum, one) => sum + one.tokens, 0);
    const spent = (performance.now() - began) / 1000;
    setText(this.result, t("burst.result", {
      done: this.done.length, total, failed: this.failures.length, time: seconds(spent), speed: rate(tokens / spent),
      p50: seconds(quantile(times, 0.5)), p95: seconds(quantile(times, 0.95)),
    }) + (this.failures.length > 0 ? ` ${this.failures.at(-1).message}` : ""));
    const shares = new Map();
    for (const one of this.done) {
      const name = one.backend ?? t("burst.noName");
      const share = shares.get(name) ?? { name, requests: 0, first: 0 };
      shares.set(name, { name, requests: share.requests + 1, first: share.first + (one.first ?? 0) });
    }
    this.most = Math.max(1, ...[...shares.values()].map((one) => one.requests));
    this.rows.show([...shares.values()].sort((one, other) => one.name.localeCompare(other.name)), (one) => one.name);
  }

  showCommand() {
    const body = { model: this.model() || undefined, messages: this.messages(), max_tokens: Number(this.limit.value) || undefined };
    this.command.show(burstCommand(body, { needsKey: this.needsKey }));
  }
}

function atOnce() {
  const [page] = performance.getEntriesByType("navigation");
  return ["h2", "h3"].includes(page?.nextHopProtocol) ? Infinity : MOST_AT_ONCE;
}

function quantile(sorted, share) {
  return sorted.length === 0 ? null : sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

function newShare() {
  const name = el("span"), length = bar(), number = el("span", { class: "n" });
  return { root: el("li", {}, name, length, number), name, length, number };
}

function showShare(row, one, most) {
  setText(row.name, one.name);
  setAttribute(row.name, "title", one.name);
  setBar(row.length, one.requests / most);
  setText(row.number, t("burst.share", { count: one.requests, first: seconds(one.first / one.requests) }));
}
