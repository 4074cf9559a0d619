// Commands that people paste into a shell: the body is JSON in ASCII, and no quote in it can end the shell's.
import { el, setText } from "./dom.js";
import { t } from "./text.js";

const URL_OF_CHATS = new URL("v1/chat/completions", location.href).href;
const COPIED_MS = 2000;

export function curlCommand(body, { needsKey }) {
  const key = needsKey ? "  -H 'Authorization: Bearer YOUR_API_KEY' \\\n" : "";
  return `curl '${URL_OF_CHATS}' \\\n${key}  -H 'Content-Type: application/json' \\\n  -d '${quotable(body)}'`;
}

// Many at once, and which backend answered how many.
export function burstCommand(body, { needsKey }) {
  const key = needsKey ? "  -H 'Authorization: Bearer YOUR_API_KEY' \\\n" : "";
  return `seq 32 | xargs -P 32 -I{} curl -s -o /dev/null -w '%header{x-backend}\\n' \\\n${key}`
    + `  -H 'Content-Type: application/json' -d '${quotable(body)}' \\\n  '${URL_OF_CHATS}' | sort | uniq -c`;
}

function quotable(body) {
  return JSON.stringify(body)
    .replace(/[\u007f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`)
    .replaceAll("'", "\\u0027");
}

// A command with a button that copies it.
export class ShellCommand {
  constructor(about) {
    this.words = el("pre", { tabindex: 0, role: "region", label: "command.label" });
    this.copying = el("button", { type: "button", text: "command.copy", on: { click: () => this.copy() } });
    this.root = el("div", { class: "command" }, el("div", { class: "toolbar" }, el("p", { class: "soft", text: about }), this.copying), this.words);
  }

  show(text) {
    setText(this.words, text);
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.words.textContent);
      setText(this.copying, t("command.copied"));
    } catch { // only https and localhost have a clipboard
      getSelection().selectAllChildren(this.words);
      setText(this.copying, t("command.selected"));
    }
    setTimeout(() => setText(this.copying, t("command.copy")), COPIED_MS);
  }
}
