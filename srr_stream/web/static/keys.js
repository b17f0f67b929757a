// Single keys. They act unless something is being typed, and can be turned off in the help (WCAG 2.1.4).

import { label, undo } from "./labels.js";
import { clearPicks, move, nPicked, togglePick } from "./queue.js";
import { hush } from "./say.js";

const KEY = "srr-keys";

const follow = (id) => document.getElementById(id)?.click();
const isRecord = document.body.dataset.view === "record";

const KEYS = {
  j: () => (isRecord ? follow("next") : move(1)),
  k: () => (isRecord ? follow("previous") : move(-1)),
  b: () => follow("back"),
  a: () => label("anomaly"),
  n: () => label("normal"),
  u: () => label("unsure"),
  x: togglePick,
  z: undo,
  "/": () => {
    const box = document.getElementById("filter-text");
    if (box) box.select(), box.focus();
    else location.assign("/#filter-text");
  },
  "?": () => follow("help"),
};

let isOn = true;
try { isOn = localStorage.getItem(KEY) !== "off"; } catch { /* they act */ }

export function listen() {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") {
      if (nPicked()) clearPicks();
      else hush();
      return;
    }
    if (!isOn || isTyping(event.target)) return;
    const run = KEYS[event.key];
    if (!run) return;
    event.preventDefault();
    run();
  });
  const box = document.getElementById("keys-on");
  box.checked = isOn;
  box.addEventListener("change", () => {
    isOn = box.checked;
    try { localStorage.setItem(KEY, isOn ? "on" : "off"); } catch { /* until the next page */ }
  });
  document.getElementById("help").addEventListener("click", () => document.getElementById("keys").showModal());
}

function isTyping(target) {
  return target.isContentEditable || target.matches("textarea, select, input:not([type=checkbox])");
}
