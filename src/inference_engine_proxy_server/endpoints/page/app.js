// The page: the feed fills the model, and the model is shown. Nothing flows the other way.
import { feedHeaders, keyOf, setKey, tryAdminKey } from "./access.js";
import { BackendPanel } from "./backend_panel.js";
import { Decisions } from "./decisions.js";
import { askForKey } from "./dialogs.js";
import { el, setAttribute, setHidden, setText } from "./dom.js";
import { Events } from "./events.js";
import { Feed } from "./feed.js";
import { FleetTable } from "./fleet_table.js";
import { clock } from "./format.js";
import { History } from "./history.js";
import { listen, showShortcuts } from "./keyboard.js";
import { Locked } from "./locked.js";
import { Model } from "./model.js";
import { Playground } from "./playground.js";
import { Requests } from "./requests.js";
import { SettingsView } from "./settings.js";
import { Summary } from "./summary.js";
import { fillPage, languageNow, nextLanguage, onLanguageChange, t } from "./text.js";
import { nextTheme, themeNow } from "./theme.js";
import { Usage } from "./usage.js";

const byId = (id) => document.getElementById(id);
const model = new Model();
const panel = new BackendPanel(openKey);
const locked = new Locked(openKey);
const fleet = new FleetTable((name) => panel.open(model, name));
const summary = new Summary(byId("summary"), announce);
const VIEWS = [
  { name: "fleet", view: fleet },
  { name: "requests", view: new Requests(), isForOperators: true },
  { name: "events", view: new Events() },
  { name: "history", view: new History() },
  { name: "usage", view: new Usage(), isForOperators: true },
  { name: "decisions", view: new Decisions(), isForOperators: true },
  { name: "playground", view: new Playground(announce, () => feed.restart()) },
  { name: "settings", view: new SettingsView(), isForOperators: true },
];
const feed = new Feed(feedHeaders, receive, showFeed);
const tools = {
  pause: el("button", { type: "button", text: "tool.pause", hint: "tool.pause.hint", "aria-pressed": "false", on: { click: togglePause } }),
  theme: el("button", { type: "button", hint: "tool.theme.hint", on: { click: changeTheme } }),
  language: el("button", { type: "button", text: "tool.language", hint: "tool.language.hint", on: { click: nextLanguage } }),
  key: el("button", { type: "button", hint: "tool.key.hint", on: { click: toggleKey } }),
  help: el("button", { type: "button", label: "key.title", on: { click: () => showShortcuts(SHORTCUTS) } }, "?"),
};
const SHORTCUTS = {
  ...Object.fromEntries(VIEWS.map(({ name }, at) => [String(at + 1), { text: `view.${name}`, act: () => (location.hash = name) }])),
  "/": { text: "key.filter", act: () => byId("view").querySelector("input[type=search], textarea")?.focus() },
  j: { text: "key.fleetRows", act: () => fleet.root.isConnected && fleet.focusRows() },
  g: { text: "key.group", act: () => fleet.root.isConnected && fleet.nextGroup() },
  p: { text: "tool.pause.hint", act: togglePause },
  t: { text: "tool.theme.hint", act: changeTheme },
  l: { text: "tool.language.hint", act: nextLanguage },
  o: { text: "tool.key.hint", act: toggleKey },
  "?": { text: "key.title", act: () => showShortcuts(SHORTCUTS) },
};
let current = VIEWS[0];
let announceLater = 0;

function receive(snapshot) {
  const isFirst = model.snapshot === null;
  model.apply(snapshot);
  if (isFirst) showView();
  else render();
}

function render() {
  if (model.snapshot === null) return;
  summary.render(model);
  const shown = current.isForOperators && !model.isOperator ? locked : current.view;
  if (byId("view").firstChild !== shown.root) byId("view").replaceChildren(shown.root);
  shown.render(model);
  panel.render(model);
  showKey();
}

function showView() {
  const name = location.hash.slice(1);
  current = VIEWS.find((one) => one.name === name) ?? current;
  for (const link of byId("views").children) {
    const isCurrent = link.dataset.view === current.name;
    setAttribute(link, "aria-current", isCurrent ? "page" : null);
    if (isCurrent) link.scrollIntoView({ block: "nearest", inline: "nearest" }); // on a phone they do not fit
  }
  if (model.snapshot === null) return;
  render();
  scrollTo(0, 0);
}

function showFeed({ name, since, status }) {
  const words = byId("feed-state");
  const text = name === "live" ? "" : textOfFeed(name, since, status);
  if (name === "stale" && words.textContent !== text) announce(text);
  setText(words, text);
  setHidden(words, text === "");
  document.body.classList.toggle("is-stale", name !== "live");
  if (name !== "live" && name !== "paused") document.title = `! ${t("page.title")}`;
  if (status === 401) setKey(keyOf("admin") === null ? "client" : "admin", null); // changed since it was entered
}

function textOfFeed(name, since, status) {
  const time = since === null ? "" : clock(since / 1000);
  if (name === "paused") return t("feed.paused", { time });
  if (status === 503) return t("feed.full");
  if (status !== null) return t("feed.refused", { status });
  return since === null ? t("feed.connecting") : t("feed.stale", { time });
}

// Screen readers hear of a change once it lasts, not of every number.
function announce(text) {
  clearTimeout(announceLater);
  announceLater = setTimeout(() => setText(byId("announcements"), text), 1500);
}

async function openKey() {
  const isGiven = await askForKey(t("key.admin"), t("key.text"), async (key) => {
    await tryAdminKey(key);
    setKey("admin", key);
  });
  if (isGiven) feed.restart();
}

function toggleKey() {
  if (model.snapshot?.admin_key === "unset") return;
  if (keyOf("admin") === null) {
    openKey();
    return;
  }
  setKey("admin", null);
  feed.restart();
}

function showKey() {
  setHidden(tools.key, model.snapshot?.admin_key === "unset");
  setText(tools.key, t(keyOf("admin") === null ? "tool.key" : "tool.forget"));
}

function togglePause() {
  feed.setPaused(!feed.isPaused);
  setAttribute(tools.pause, "aria-pressed", String(feed.isPaused));
}

function changeTheme() {
  nextTheme();
  setText(tools.theme, t(`theme.${themeNow()}`));
}

function redraw() {
  setText(tools.theme, t(`theme.${themeNow()}`));
  setAttribute(tools.language, "lang", languageNow() === "en" ? "zh-TW" : "en");
  for (const { view } of VIEWS) {
    fillPage(view.root);
    view.redraw?.();
  }
  fillPage(locked.root);
  render();
}

byId("views").append(...VIEWS.map(({ name }) => el("a", { href: `#${name}`, "data-view": name, text: `view.${name}` })));
byId("tools").append(...Object.values(tools));
fillPage();
setHidden(byId("feed-state"), false);
onLanguageChange(redraw);
addEventListener("hashchange", showView);
listen(SHORTCUTS);
redraw();
showView();
showFeed({ name: "connecting", since: null, status: null });
feed.start();
