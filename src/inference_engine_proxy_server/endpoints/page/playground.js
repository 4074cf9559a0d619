// A chat with a model of the fleet.
import { keyOf, setKey } from "./access.js";
import { chat } from "./chat.js";
import { Concurrency } from "./concurrency.js";
import { askForKey } from "./dialogs.js";
import { el, setHidden, setText } from "./dom.js";
import { count, rate, seconds, UNKNOWN } from "./format.js";
import { curlCommand, ShellCommand } from "./shell_command.js";
import { t } from "./text.js";

export class Playground {
  // announce(text) tells screen readers; onKey() is called when there is another API key.
  constructor(announce, onKey) {
    this.announce = announce;
    this.onKey = onKey;
    this.messages = [];
    this.stopper = null;
    this.needsKey = false; // known once a request was refused
    this.model = el("select", { id: "chat-model" });
    this.models = "";
    this.limit = el("input", { id: "chat-limit", type: "number", min: 1, max: 100_000, value: 400 });
    this.log = el("div", { class: "chat-log", tabindex: 0, role: "region", label: "chat.log" });
    this.input = el("textarea", { rows: 3, label: "chat.message", ghost: "chat.message" });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    this.sending = el("button", { type: "submit", class: "primary", text: "chat.send" });
    this.stopping = el("button", { type: "button", text: "chat.stop", on: { click: () => this.stopper?.abort() } });
    this.clearing = el("button", { type: "button", text: "chat.clear", on: { click: () => this.clear() } });
    this.key = el("button", { type: "button", text: "chat.key", on: { click: () => this.askForKey() } });
    this.form = el("form", { class: "chat-form" }, this.input, el("div", { class: "actions" }, this.sending, this.stopping, this.clearing, this.key));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.command = new ShellCommand("command.about");
    this.concurrency = new Concurrency(() => this.model.value, announce);
    this.root = el("div", { class: "playground" },
      el("section", { label: "chat.title" }, el("div", { class: "toolbar" }, el("h2", { text: "chat.title" }),
        el("label", { for: "chat-model", text: "chat.model" }), this.model, el("label", { for: "chat-limit", text: "chat.limit" }), this.limit),
      this.log, this.form, this.command.root), this.concurrency.root);
    this.showBusy(false);
  }

  render(model) {
    const names = [...new Set(model.snapshot.backends.filter((one) => one.shown_state !== "down").flatMap((one) => one.models))].sort();
    if (names.join("\n") !== this.models) {
      const chosen = this.model.value;
      this.models = names.join("\n");
      this.model.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
      if (names.includes(chosen)) this.model.value = chosen;
    }
    setHidden(this.key, !this.needsKey && keyOf("client") === null);
    const needsKey = this.needsKey || keyOf("client") !== null;
    const body = { model: this.model.value || undefined, messages: [{ role: "user", content: "Say hello." }] };
    this.command.show(curlCommand(body, { needsKey }));
    this.concurrency.render(needsKey);
  }

  async send() {
    const text = this.input.value.trim();
    if (!text || this.stopper) return;
    this.input.value = "";
    this.messages.push({ role: "user", content: text });
    this.add("user", text);
    const { thought, words, facts } = this.add("assistant", "");
    this.stopper = new AbortController();
    this.showBusy(true);
    let answer = "";
    try {
      const ask = { model: this.model.value, messages: this.messages, maxTokens: Number(this.limit.value), signal: this.stopper.signal };
      const result = await chat(ask, (piece, musing) => {
        answer += piece;
        words.append(piece);
        thought.append(musing);
        setHidden(thought, thought.textContent === "");
        this.follow();
      });
      setText(facts, factsOf(result));
      this.announce(t("chat.finished"));
    } catch (error) {
      this.showFailure(facts, error);
    }
    if (answer) this.messages.push({ role: "assistant", content: answer });
    else this.messages.pop();
    this.stopper = null;
    this.showBusy(false);
    this.follow();
  }

  showFailure(facts, error) {
    const isStopped = error.name === "AbortError";
    setText(facts, isStopped ? t("chat.stopped") : error.message);
    facts.classList.toggle("failure", !isStopped);
    if (error.status === 401) {
      this.needsKey = true;
      setHidden(this.key, false);
    }
  }

  add(role, text) {
    const thought = el("p", { class: "thought", hidden: true }), words = el("p", { class: "words" }), facts = el("p", { class: "soft" });
    setText(words, text);
    this.log.append(el("article", { class: role }, el("h3", { text: `chat.${role}` }), thought, words, facts));
    this.follow();
    return { thought, words, facts };
  }

  // Stay at the end, unless somebody has scrolled up.
  follow() {
    const { scrollHeight, scrollTop, clientHeight } = this.log;
    if (scrollHeight - scrollTop - clientHeight < 120) this.log.scrollTop = scrollHeight;
  }

  clear() {
    this.stopper?.abort();
    this.messages = [];
    this.log.replaceChildren();
  }

  showBusy(isBusy) {
    this.sending.disabled = isBusy;
    this.stopping.disabled = !isBusy;
  }

  async askForKey() {
    const isGiven = await askForKey(t("chat.key"), t("chat.keyText"), async (key) => setKey("client", key));
    if (isGiven) this.onKey();
  }
}

function factsOf({ backend, first, seconds: whole, tokens, id }) {
  const speed = tokens > 1 && whole > first ? (tokens - 1) / (whole - first) : null;
  return t("chat.facts", { backend: backend ?? UNKNOWN, first: seconds(first), whole: seconds(whole), tokens: count(tokens), speed: rate(speed), id: id ?? UNKNOWN });
}
