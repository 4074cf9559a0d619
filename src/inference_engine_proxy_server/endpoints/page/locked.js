// In place of a view that only operators see.
import { el, setHidden, setText } from "./dom.js";
import { t } from "./text.js";

export class Locked {
  constructor(openKey) {
    this.words = el("p");
    this.button = el("button", { type: "button", class: "primary", text: "panel.key", on: { click: openKey } });
    this.root = el("section", { class: "locked", label: "locked.title" }, el("h2", { text: "locked.title" }), this.words, this.button);
  }

  render(model) {
    const isOff = model.snapshot.admin_key === "unset";
    setText(this.words, t(isOff ? "locked.off" : "locked.text"));
    setHidden(this.button, isOff);
  }
}
