// The keys, and requests that need one. Keys are kept until the tab is closed.
import { recallSecret, rememberSecret } from "./memory.js";
import { t } from "./text.js";

const keys = { admin: recallSecret("admin-key"), client: recallSecret("client-key") };

export function keyOf(kind) {
  return keys[kind];
}

export function setKey(kind, key) {
  keys[kind] = key || null;
  rememberSecret(`${kind}-key`, keys[kind]);
}

// The operators' key shows everything, a client's key what /health shows to this client.
export function feedHeaders() {
  return bearer(keys.admin ?? keys.client);
}

export function clientHeaders() {
  return bearer(keys.client);
}

function bearer(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// A request under admin/; returns its JSON. Its error has a message for people.
export async function askOperator(path, { method = "GET", key = keys.admin } = {}) {
  let reply;
  try {
    reply = await fetch(`admin/${path}`, { method, headers: bearer(key), cache: "no-store" });
  } catch {
    throw new Error(t("error.unreachable"));
  }
  if (reply.ok) return reply.json();
  const error = (await reply.json().catch(() => ({}))).error ?? {};
  throw Object.assign(new Error(reasonOf(reply.status, error)), { status: reply.status });
}

function reasonOf(status, error) {
  if (error.code === "admin_off") return t("error.adminOff");
  if (error.code === "not_here") return t("error.adminPort");
  if (status === 401) return t("error.wrongKey");
  if (error.message) return error.message;
  return status === 404 ? t("error.blocked") : t("error.status", { status });
}

// Whether the proxy accepts the key; throws an error for people if not.
export async function tryAdminKey(key) {
  await askOperator("decisions?limit=1", { key });
}
