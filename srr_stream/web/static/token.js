// The API's token: from the address or asked for, kept for this tab.

const KEY = "srr-token";
const AUTHOR = "srr-author";

const read = (store, key) => { try { return store.getItem(key) || ""; } catch { return ""; } };
const write = (store, key, value) => { try { store.setItem(key, value); } catch { /* it lasts as long as the page */ } };

let kept = read(sessionStorage, KEY);
let author = read(localStorage, AUTHOR);

/** Take the token out of the address, where it would be seen and bookmarked. */
export function takeFromAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given === null) return;
  remember(given);
  history.replaceState(history.state, "", location.pathname + location.search);
}

export const token = () => kept;
export const authorName = () => author;

function remember(value) {
  kept = value;
  write(sessionStorage, KEY, value);
}

/** Ask for the token; false: the person would not give it. `problem` says what was wrong with the one before. */
export function ask(problem = "") {
  const dialog = document.getElementById("ask-token");
  const form = dialog.querySelector("form");
  const note = document.getElementById("ask-token-problem");
  note.hidden = !problem;
  note.textContent = problem;
  form.elements.token.value = "";
  form.elements.author.value = author;
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const isGiven = dialog.returnValue === "ok" && form.elements.token.value.trim() !== "";
      if (isGiven) {
        remember(form.elements.token.value.trim());
        author = form.elements.author.value.trim();
        write(localStorage, AUTHOR, author);
      }
      form.elements.token.value = "";
      resolve(isGiven);
    }, { once: true });
  });
}
