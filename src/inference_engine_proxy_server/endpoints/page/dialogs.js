// Questions to the user. A dialog takes the focus, gives it back, and closes with Escape.
import { el, setText } from "./dom.js";
import { t } from "./text.js";

// Show a dialog with this content until it is closed; returns it.
export function openDialog(name, title, ...content) {
  const close = el("button", { type: "button", class: "close", label: "dialog.close", on: { click: () => dialog.close() } }, "×");
  const heading = el("h2", { id: `${name}-title` });
  setText(heading, title);
  const dialog = el("dialog", { class: name, "aria-labelledby": heading.id }, el("header", {}, heading, close), ...content);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // outside its content
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

// Ask before something is done: resolves when it is done or refused. act() may throw an error for people.
export function confirmed(title, text, verb, act) {
  const words = el("p");
  setText(words, text);
  const yes = el("button", { type: "button", class: "primary" });
  setText(yes, verb);
  const no = el("button", { type: "button", text: "dialog.cancel", autofocus: true });
  const failure = el("p", { class: "failure", role: "alert" });
  const dialog = openDialog("question", title, words, failure, el("div", { class: "actions" }, no, yes));
  return new Promise((resolve) => {
    no.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => resolve());
    yes.addEventListener("click", async () => {
      yes.disabled = true;
      try {
        await act();
        dialog.close();
      } catch (error) {
        setText(failure, error.message);
        yes.disabled = false;
      }
    });
  });
}

// Ask for a key; check(key) throws an error for people if it is wrong. Resolves to whether there is a new key.
export function askForKey(title, text, check) {
  const words = el("p");
  setText(words, text);
  const input = el("input", { type: "password", autocomplete: "off", spellcheck: "false", label: "key.field", ghost: "key.field" });
  const failure = el("p", { class: "failure", role: "alert" });
  const form = el("form", {}, input, el("button", { class: "primary", text: "key.use" }));
  const dialog = openDialog("question", title, words, form, failure);
  return new Promise((resolve) => {
    let isGiven = false;
    dialog.addEventListener("close", () => resolve(isGiven));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const key = input.value.trim();
      if (!isSendable(key)) {
        setText(failure, t("key.unsendable"));
        return;
      }
      try {
        await check(key);
        isGiven = true;
        dialog.close();
      } catch (error) {
        setText(failure, error.message);
      }
    });
    input.focus();
  });
}

// A header can carry only visible ASCII characters.
function isSendable(key) {
  return /^[\x21-\x7e]+$/.test(key);
}
