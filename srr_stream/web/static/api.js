// Requests to the API, with the token, and with its problems (RFC 9457) as errors.

import { ask, token } from "./token.js";

export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** The person gave no token: nothing is done, and nothing has to be said. */
export class Declined extends Error {}

/**
 * Change something. Asks for the token where it is missing or refused.
 * @param {() => object} [makeBody] called once the token, and so the person's name, is known
 * @returns {Promise<object|null>} the answer's JSON
 */
export async function send(method, path, makeBody) {
  if (!token() && !(await ask())) throw new Declined();
  for (;;) {
    const answer = await request(method, path, makeBody?.());
    if (answer.status !== 401) return read(answer);
    if (!(await ask("The API refused this token."))) throw new Declined();
  }
}

async function request(method, path, body) {
  const headers = { Accept: "application/json" };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Problem(0, "The API does not answer. Is srr-stream still running?");
  }
}

async function read(answer) {
  const text = await answer.text();
  let content = null;
  try { content = text ? JSON.parse(text) : null; } catch { /* not JSON: the status says enough */ }
  if (!answer.ok) throw new Problem(answer.status, content?.detail || content?.title || `The API answered ${answer.status}.`);
  return content;
}
