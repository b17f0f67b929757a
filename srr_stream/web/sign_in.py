"""Signing in, where reading needs the token: a page that turns the token into a cookie that can only read."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from srr_stream.web.access import COOKIE, Access

_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign in · srr-stream</title>
<link rel="stylesheet" href="/sign-in.css">
<script src="/sign-in.js" type="module"></script>
</head>
<body>
<main>
<h1>Sign in</h1>
<p>Reading here needs the API's token: what <code>api.token</code> or <code>api.token_file</code> of the settings says,
or the file <code>api-token</code> in <code>api.state_dir</code>.</p>
<form>
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required>
<button>Sign in</button>
<p role="alert" id="problem"></p>
</form>
<noscript><p>Signing in needs JavaScript; programs send the header <code>Authorization: Bearer TOKEN</code>
instead.</p></noscript>
</main>
</body>
</html>
"""
_STYLE = """:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { margin: 0; }
main { max-width: 28rem; margin: 4rem auto; padding: 0 1rem; }
form { display: grid; gap: 0.5rem; }
input, button { font: inherit; padding: 0.5rem; }
#problem:empty { display: none; }
"""
_SCRIPT = """const form = document.querySelector("form");
const problem = document.getElementById("problem");

function target() {
  const next = new URLSearchParams(location.search).get("next") || "/";
  const address = new URL(next, location.origin);
  return address.origin === location.origin ? address.pathname + address.search : "/";
}

async function signIn(token) {
  const headers = { Authorization: `Bearer ${token}` };
  const answer = await fetch("/v1/session", { method: "POST", headers }).catch(() => null);
  if (answer !== null && answer.ok) {
    try { sessionStorage.setItem("srr-token", token); } catch { /* the page asks again for it */ }
    location.replace(target());
    return;
  }
  problem.textContent = answer === null ? "The API does not answer." : "This token is refused.";
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(form.elements.token.value.trim());
});

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given !== null) {
  history.replaceState(null, "", location.pathname + location.search);
  signIn(given);
}
"""


def make_sign_in(access: Access) -> APIRouter:
    """Return the routes of signing in."""
    router = APIRouter(include_in_schema=False)

    @router.get("/sign-in")
    def page() -> Response:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _CSP})

    @router.get("/sign-in.css")
    def style() -> Response:
        return Response(_STYLE, media_type="text/css")

    @router.get("/sign-in.js")
    def script() -> Response:
        return Response(_SCRIPT, media_type="text/javascript")

    @router.post("/v1/session")
    def sign_in() -> Response:  # whoever comes here has shown the token
        answer = Response(status_code=204)
        answer.set_cookie(COOKIE, access.session(), httponly=True, samesite="strict", path="/")
        return answer

    @router.delete("/v1/session")
    def sign_out() -> Response:
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict", path="/")
        return answer

    return router
