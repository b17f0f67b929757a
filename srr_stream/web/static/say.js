// What the page says of an action: a toast to see, a live region to hear.

const LASTS_MS = 9000;

const toasts = document.getElementById("toasts");

/** Say a text to screen readers only. */
export function announce(text, { isUrgent = false } = {}) {
  const region = document.getElementById(isUrgent ? "warned" : "said");
  region.textContent = "";
  // A region that is filled in the same turn in which it was emptied may be passed over.
  setTimeout(() => { region.textContent = text; }, 50);
}

/**
 * Show a text for some seconds, longer while the pointer or the focus is on it, and announce it.
 * @param {string} text
 * @param {{tone?: "good"|"bad", action?: {text: string, key?: string, run: () => void}}} options
 */
export function say(text, { tone = "good", action = null } = {}) {
  announce(text, { isUrgent: tone === "bad" });
  const toast = document.createElement("div");
  toast.className = "toast";
  toast.dataset.tone = tone;
  const words = document.createElement("p");
  words.textContent = text;
  toast.append(words);
  if (action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = action.text;
    if (action.key) {
      const key = document.createElement("kbd");
      key.textContent = action.key;
      button.append(" ", key);
    }
    button.addEventListener("click", () => { toast.remove(); action.run(); });
    toast.append(button);
  } else {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "plain icon";
    button.setAttribute("aria-label", "Close");
    button.textContent = "×";
    button.addEventListener("click", () => toast.remove());
    toast.append(button);
  }
  toasts.replaceChildren(toast);
  let timer = setTimeout(() => toast.remove(), LASTS_MS);
  const hold = () => clearTimeout(timer);
  const release = () => { clearTimeout(timer); timer = setTimeout(() => toast.remove(), LASTS_MS); };
  for (const name of ["pointerenter", "focusin"]) toast.addEventListener(name, hold);
  for (const name of ["pointerleave", "focusout"]) toast.addEventListener(name, release);
}

/** Take the toast away. */
export function hush() {
  toasts.replaceChildren();
}
