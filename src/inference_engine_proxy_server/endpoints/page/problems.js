// Which backends need attention, and the one sentence about the fleet.
import { shortName } from "./format.js";
import { t } from "./text.js";

const NAMED = 4; // backends in the sentence
// The higher, the worse. Busy is not a problem: the queue says whether the fleet is too small.
const GRAVITY = { down: 3, frozen: 3, suspect: 2, starting: 1, draining: 1 };

export function gravity(backend) {
  return GRAVITY[backend.shown_state] ?? (backend.errors_per_minute > 0 ? 2 : 0);
}

export function isProblem(backend) {
  return gravity(backend) > 0;
}

// { level: error | warning | notice | ok, text }
export function verdict(snapshot) {
  const { backends, fleet } = snapshot;
  if (backends.length === 0) return { level: "warning", text: t("verdict.empty") };
  const broken = backends.filter((one) => gravity(one) === 3);
  const doubtful = backends.filter((one) => gravity(one) === 2);
  const total = backends.length;
  if (broken.length > 0) return { level: "error", text: worded("verdict.broken", broken, total) };
  if (fleet.available === 0) return { level: "error", text: t("verdict.none", { total }) };
  if (doubtful.length > 0) return { level: "warning", text: worded("verdict.doubtful", doubtful, total) };
  const silent = snapshot.workers?.silent?.length ?? 0;
  if (silent > 0) return { level: "warning", text: t("verdict.silent", { count: silent }) };
  if (fleet.queue > 0) return { level: "notice", text: t("verdict.queue", { count: fleet.queue }) };
  const resting = backends.filter(isProblem);
  if (resting.length > 0) return { level: "notice", text: worded("verdict.resting", resting, total) };
  const differing = (snapshot.differences ?? []).filter((one) => one.severity === "warning").map((one) => one.model);
  if (differing.length > 0) return { level: "notice", text: t("verdict.differ", { models: [...new Set(differing)].join(", ") }) };
  return { level: "ok", text: t("verdict.ok", { count: total }) };
}

function worded(key, backends, total) {
  const names = backends.slice(0, NAMED).map((one) => shortName(one.name)).join(", ");
  const more = backends.length > NAMED ? t("verdict.more", { count: backends.length - NAMED }) : "";
  return t(key, { count: backends.length, total, names: names + more });
}
