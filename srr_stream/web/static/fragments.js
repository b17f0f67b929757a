// Parts of the page, fetched anew from the server and put in the place of those with the same id.

import { token } from "./token.js";

/** Fetch HTML; null if that fails. */
export async function fetchHtml(path) {
  try {
    const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
    const answer = await fetch(path, { headers });
    return answer.ok ? await answer.text() : null;
  } catch {
    return null;
  }
}

/** Put every part of `html` that has one of the ids in the place of the one in the page. */
export function swap(html, ids) {
  const fetched = new DOMParser().parseFromString(html, "text/html");
  for (const id of ids) {
    const fresh = fetched.getElementById(id);
    const stale = document.getElementById(id);
    if (!fresh || !stale || fresh.outerHTML === stale.outerHTML) continue;
    const path = pathToFocus(stale);
    const isPicked = stale.querySelector(":scope > .pick")?.checked;
    stale.replaceWith(document.adoptNode(fresh));
    if (isPicked) fresh.querySelector(":scope > .pick").checked = true;
    if (path) focusAgain(fresh, path);
  }
}

// Where the focus is inside of a part, as places among siblings.
function pathToFocus(part) {
  let at = document.activeElement;
  if (!part.contains(at)) return null;
  const isButton = at.matches("button[data-label]") ? at.dataset.label : null;
  const path = [];
  for (; at !== part; at = at.parentElement) path.unshift([...at.parentElement.children].indexOf(at));
  return { isButton, path };
}

function focusAgain(part, { isButton, path }) {
  const same = isButton && part.querySelector(`button[data-label="${isButton}"]`);
  let at = part;
  for (const place of path) at = at?.children[place];
  const target = same || at || part.querySelector("a, button");
  target?.focus({ preventScroll: true });
}
