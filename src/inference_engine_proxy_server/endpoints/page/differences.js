// Replicas of a model that differ: a closed list below the sentence about the fleet.
import { el, Rows, setAttribute, setHidden, setText } from "./dom.js";
import { shortName } from "./format.js";
import { t } from "./text.js";

const NAMED = 4; // backends for each value

export class Differences {
  constructor() {
    this.head = el("summary");
    this.list = el("ul");
    this.root = el("details", { class: "differences" }, this.head, this.list);
    this.rows = new Rows(this.list, () => ({ root: el("li") }), (row, one) => {
      setText(row.root, textOf(one));
      setAttribute(row.root, "title", one.remedy);
    });
  }

  // The proxy of an older version has none.
  render(differences = []) {
    setHidden(this.root, differences.length === 0);
    setText(this.head, t("differ.head", { count: differences.length }));
    this.rows.show(differences, (one) => `${one.model} ${one.aspect}`);
  }
}

function textOf({ model, aspect, values, usual }) {
  const parts = values.map(({ value, backends }) => t("differ.value", { value, names: named(backends) }));
  if (usual !== null) parts.push(t("differ.usual", { value: usual }));
  const effect = t(`differ.effect.${aspect}`);
  return t("differ.line", { model, aspect: t(`differ.aspect.${aspect}`), values: parts.join(t("differ.between")), effect });
}

function named(backends) {
  const more = backends.length > NAMED ? t("verdict.more", { count: backends.length - NAMED }) : "";
  return backends.slice(0, NAMED).map(shortName).join(", ") + more;
}
