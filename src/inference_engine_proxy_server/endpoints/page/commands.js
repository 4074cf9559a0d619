// What an operator can do, each after a confirmation that says what happens.
import { askOperator } from "./access.js";
import { confirmed } from "./dialogs.js";
import { t } from "./text.js";

export function drain(name, count) {
  return confirmed(t("drain.title", { name }), t("drain.text", { name, count }), t("drain.verb"),
    () => askOperator(`backends/${encodeURIComponent(name)}/drain`, { method: "POST" }));
}

export function move(name, count) {
  return confirmed(t("move.title", { name }), t("move.text", { name, count }), t("move.verb"),
    () => askOperator(`backends/${encodeURIComponent(name)}/drain?move=true`, { method: "POST" }));
}

export function undrain(name) {
  return confirmed(t("undrain.title", { name }), t("undrain.text", { name }), t("undrain.verb"),
    () => askOperator(`backends/${encodeURIComponent(name)}/undrain`, { method: "POST" }));
}

export function cancel(id) {
  return confirmed(t("cancel.title", { id }), t("cancel.text"), t("cancel.verb"),
    () => askOperator(`requests/${encodeURIComponent(id)}/cancel`, { method: "POST" }));
}
