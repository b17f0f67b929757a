// The status line, fetched anew every few seconds while somebody can see it.

import { fetchHtml, swap } from "./fragments.js";
import { announce } from "./say.js";

const EVERY_MS = 4000;

let timer = null;

async function refresh() {
  clearTimeout(timer);
  if (document.hidden) return;
  const line = document.getElementById("status");
  const before = line.dataset.state;
  const html = await fetchHtml("/fragments/status");
  if (html === null) {
    showAway();
  } else {
    line.classList.remove("is-stale");
    swap(html, ["status"]);
    const now = document.getElementById("status");
    if (now.dataset.state !== before) {
      announce(`${now.querySelector(".state").textContent}: ${now.querySelector(".sentence").textContent}`);
    }
  }
  timer = setTimeout(refresh, EVERY_MS);
}

// The API itself is away: nobody else can say so.
function showAway() {
  const line = document.getElementById("status");
  if (line.dataset.state === "away") return;
  line.dataset.state = "away";
  line.classList.add("is-stale");
  line.querySelector(".state").textContent = "API unreachable";
  line.querySelector(".sentence").textContent = "This page is as old as it was when the API last answered. It goes on by itself once srr-stream runs again.";
  announce("The API does not answer.");
}

export function listen() {
  if (!document.getElementById("status")) return;
  document.addEventListener("visibilitychange", refresh);
  timer = setTimeout(refresh, EVERY_MS);
}
