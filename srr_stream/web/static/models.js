// Promote, roll back, train: each after a question, each with a reason.

import { Declined, send } from "./api.js";
import { fetchHtml, swap } from "./fragments.js";
import { say } from "./say.js";

const DONE = {
  promote: (version) => `v${version} is promoted`,
  rollback: () => "Rolled back",
  train: () => "A training is asked for; the status line shows it",
};

function question(button) {
  const dialog = document.getElementById("confirm");
  const form = dialog.querySelector("form");
  document.getElementById("confirm-title").textContent = button.dataset.title;
  document.getElementById("confirm-text").textContent = button.dataset.text;
  document.getElementById("confirm-ok").textContent = button.dataset.ok;
  form.elements.reason.value = "";
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "ok" ? { reason: form.elements.reason.value.trim() } : null);
    }, { once: true });
  });
}

async function act(button) {
  const { do: what, version } = button.dataset;
  const answer = await question(button);
  if (!answer) return;
  const path = what === "promote" ? `/v1/models/${version}/promote` : `/v1/${what}`;
  try {
    await send("POST", path, () => (answer.reason ? { reason: answer.reason } : {}));
    say(DONE[what](version));
    const html = await fetchHtml(location.pathname + location.search);
    if (html) swap(html, ["models-head", "versions", "status"]);
  } catch (error) {
    if (!(error instanceof Declined)) say(error.message, { tone: "bad" });
  }
}

export function listen() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-do]");
    if (button) act(button);
  });
}
