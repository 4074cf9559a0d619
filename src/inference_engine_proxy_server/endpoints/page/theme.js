// Light or dark: as the system says, or as chosen. Runs before the page is painted.
import { recall, remember } from "./memory.js";

const CHOICES = ["system", "light", "dark"];
let choice = recall("theme");
if (!CHOICES.includes(choice)) choice = "system";
apply();

function apply() {
  const root = document.documentElement;
  if (choice === "system") delete root.dataset.theme;
  else root.dataset.theme = choice;
}

export function themeNow() {
  return choice;
}

export function nextTheme() {
  choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
  remember("theme", choice);
  apply();
}
