// The queue: which record is in focus, which are selected.

const boxes = () => [...document.querySelectorAll("#records .pick")];
const rows = () => [...document.querySelectorAll("#records > .record")];

let lastId = null;
let lastBox = null;

/** The record in focus, or the one that had it last. */
export function rowOf() {
  const focused = document.activeElement?.closest?.("[data-id]");
  if (focused) return focused;
  return lastId === null ? null : document.getElementById(`record-${lastId}`);
}

/** Ids of the selected records, or of the one in focus. */
export function picked() {
  const ids = boxes().filter((box) => box.checked).map((box) => box.closest("[data-id]").dataset.id);
  if (ids.length) return ids;
  const row = document.body.dataset.view === "record" ? document.querySelector("[data-id]") : rowOf();
  return row ? [row.dataset.id] : [];
}

export const nPicked = () => boxes().filter((box) => box.checked).length;

/** Go to the next (1) or the previous (-1) record. */
export function move(by) {
  const all = rows();
  if (!all.length) return;
  const at = all.indexOf(rowOf());
  const to = at < 0 ? (by > 0 ? 0 : all.length - 1) : at + by;
  if (to >= all.length) {
    document.getElementById("older")?.focus();
    return;
  }
  const link = all[Math.max(0, to)].querySelector(".reason");
  link.focus({ preventScroll: true });
  link.closest(".record").scrollIntoView({ block: "nearest" });
}

/** Select the record in focus, or let go of it. */
export function togglePick() {
  const box = rowOf()?.querySelector(".pick");
  if (!box) return;
  box.checked = !box.checked;
  lastBox = box.closest("[data-id]").dataset.id;
  show();
}

export function clearPicks() {
  for (const box of boxes()) box.checked = false;
  show();
}

function show() {
  const n = nPicked();
  const bar = document.getElementById("bulk");
  if (!bar) return;
  if (!n && bar.contains(document.activeElement)) rowOf()?.querySelector(".reason")?.focus();
  bar.hidden = n === 0;
  document.getElementById("n-picked").textContent = n;
  const all = document.getElementById("pick-all");
  all.checked = n > 0 && n === boxes().length;
  all.indeterminate = n > 0 && !all.checked;
}

export function listen() {
  document.addEventListener("focusin", (event) => {
    const row = event.target.closest?.("#records > .record");
    if (row) lastId = row.dataset.id;
  });
  const list = document.getElementById("records");
  if (!list) return;
  list.addEventListener("click", (event) => {
    const box = event.target.closest(".pick");
    if (!box) return;
    const all = boxes();
    const from = all.findIndex((other) => other.closest("[data-id]").dataset.id === lastBox);
    if (event.shiftKey && from >= 0) {
      const to = all.indexOf(box);
      for (const between of all.slice(Math.min(from, to), Math.max(from, to) + 1)) between.checked = box.checked;
    }
    lastBox = box.closest("[data-id]").dataset.id;
    show();
  });
  document.getElementById("pick-all")?.addEventListener("change", (event) => {
    for (const box of boxes()) box.checked = event.target.checked;
    show();
  });
  document.getElementById("pick-none")?.addEventListener("click", clearPicks);
  // A browser that comes back to this page may bring its ticks along.
  show();
}
