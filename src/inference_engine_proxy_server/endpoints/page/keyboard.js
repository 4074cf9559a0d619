// Shortcuts, and the list of them.
import { openDialog } from "./dialogs.js";
import { el } from "./dom.js";
import { t } from "./text.js";

// actions: { key: { text: key of its description, act } }, in the order of the list.
export function listen(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || isTyping(event.target)) return;
    if (document.querySelector("dialog[open]") !== null) return;
    const action = actions[event.key];
    if (action === undefined) return;
    event.preventDefault();
    action.act();
  });
}

export function showShortcuts(actions) {
  const more = [["↑ ↓", "key.rows"], ["Enter", "key.open"], ["← →", "key.chart"], ["Esc", "key.close"]];
  const listed = [...Object.entries(actions).map(([key, one]) => [key, one.text]), ...more];
  const pairs = listed.map(([key, text]) => el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", { text })));
  openDialog("shortcuts", t("key.title"), el("dl", {}, ...pairs));
}

function isTyping(target) {
  return target.matches?.("input:not([type=checkbox]), textarea, select") ?? false;
}
