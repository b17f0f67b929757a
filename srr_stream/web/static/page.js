// Where the page's scripts begin.

import * as keys from "./keys.js";
import * as labels from "./labels.js";
import * as models from "./models.js";
import * as queue from "./queue.js";
import * as status from "./status.js";
import { takeFromAddress } from "./token.js";

takeFromAddress();
addEventListener("hashchange", takeFromAddress);
for (const part of [queue, labels, models, keys, status]) part.listen();

// --- theme
const root = document.documentElement;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
const button = document.getElementById("theme");
const nameIt = () => button.setAttribute("aria-label", `Change to the ${isDark() ? "light" : "dark"} theme`);
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("srr-theme", root.dataset.theme); } catch { /* until the next page */ }
  nameIt();
});
prefersDark.addEventListener("change", nameIt);
nameIt();

// --- dialogs
document.addEventListener("click", (event) => {
  if (event.target.closest("button[data-close]")) event.target.closest("dialog").close("cancel");
});

// --- a chart that is wider than the screen shows its newest end
for (const chart of document.querySelectorAll(".chart")) chart.scrollLeft = chart.scrollWidth;
if (location.hash === "#filter-text") document.getElementById("filter-text")?.focus();
