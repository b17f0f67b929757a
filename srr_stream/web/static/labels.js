// Labelling: one record, the selected ones, and back again.

import { Declined, send } from "./api.js";
import { fetchHtml, swap } from "./fragments.js";
import { say } from "./say.js";
import { clearPicks, picked, rowOf } from "./queue.js";
import { authorName } from "./token.js";

const KEY = "srr-undo";
const MOST_UNDO = 20;
const MOST_IDS = 200;

let isBusy = false;

const elementOf = (id) => document.getElementById(`record-${id}`);

// What can be undone outlives a turn to the next record.
function undoStack() {
  try { return JSON.parse(sessionStorage.getItem(KEY)) || []; } catch { return []; }
}

function keepUndo(stack) {
  try { sessionStorage.setItem(KEY, JSON.stringify(stack.slice(-MOST_UNDO))); } catch { /* then there is no undo */ }
}

const nRecords = (n, first) => (n === 1 ? first : `${n.toLocaleString("en")} records`);

/** Label the selected records, or else the one in focus. `label` "none" takes the label away. */
export async function label(name, { ids = null, note = null } = {}) {
  const chosen = ids ?? picked();
  if (!chosen.length) return;
  if (chosen.length > MOST_IDS) {
    say(`${chosen.length} are selected; ${MOST_IDS} can be labelled at once.`, { tone: "bad" });
    return;
  }
  await change(async () => {
    const before = saidBefore(chosen);
    await put(name, chosen, note);
    keepUndo([...undoStack(), { before, name }]);
    const what = nRecords(chosen.length, "Record");
    say(name === "none" ? `${what}: label removed` : `${what} labelled ${name}`, { action: { text: "Undo", key: "z", run: undo } });
    await refresh(chosen);
    if (!ids && chosen.length > 1) clearPicks();
  });
}

/** Bring back what was said before the last labelling. */
export async function undo() {
  const stack = undoStack();
  const last = stack.at(-1);
  if (!last) {
    say("There is nothing to undo.");
    return;
  }
  await change(async () => {
    const groups = new Map();
    for (const { id, label: name, note } of last.before) {
      const key = JSON.stringify([name, note]);
      groups.set(key, { name, note, ids: [...(groups.get(key)?.ids ?? []), id] });
    }
    for (const { name, note, ids } of groups.values()) await put(name, ids, note);
    keepUndo(stack.slice(0, -1));
    const ids = last.before.map(({ id }) => id);
    say(`Undone: ${nRecords(ids.length, "the record")} ${ids.length === 1 ? "is" : "are"} as before`);
    await refresh(ids);
  });
}

// What people said of some records so far.
const saidBefore = (ids) => ids.map((id) => {
  const { is = "none", note = "" } = elementOf(id)?.dataset ?? {};
  return { id, label: is, note };
});

async function put(name, ids, note) {
  if (name === "none") {
    for (const id of ids) await send("DELETE", `/v1/labels/${encodeURIComponent(id)}`);
    return;
  }
  await send("POST", "/v1/labels", () => ({ ids, label: name, note: note ?? "", author: authorName() }));
}

async function change(run) {
  if (isBusy) return;
  isBusy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    await run();
  } catch (error) {
    if (!(error instanceof Declined)) say(error.message, { tone: "bad" });
  } finally {
    isBusy = false;
    document.body.removeAttribute("aria-busy");
  }
}

async function refresh(ids) {
  const there = ids.filter(elementOf);
  if (document.body.dataset.view === "record") {
    for (const id of there) {
      const html = await fetchHtml(`/fragments/label?id=${encodeURIComponent(id)}`);
      if (html) swap(html, [`record-${id}`]);
    }
    return;
  }
  const asked = new URLSearchParams(location.search);
  asked.delete("id");
  for (const id of there) asked.append("id", id);
  const html = await fetchHtml(`/fragments/records?${asked}`);
  if (html) swap(html, [...there.map((id) => `record-${id}`), "labels-summary"]);
}

/** Act on clicks on label buttons, wherever they are. */
export function listen() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-label]");
    if (!button) return;
    const name = button.dataset.label;
    const record = button.closest("[data-id]");
    if (!record) {
      label(name);
      return;
    }
    const note = button.form?.elements.note?.value ?? null;
    const isSame = button.getAttribute("aria-pressed") === "true" && (note === null || note === record.dataset.note);
    // A second click on what is said already takes it back.
    label(isSame ? "none" : name, { ids: [record.dataset.id], note });
  });
  document.addEventListener("submit", (event) => {
    if (event.target.matches(".label-form")) event.preventDefault();
  });
}

export { rowOf };
