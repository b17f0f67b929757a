"""Who may do what: a token for every change, and for reading too, unless it is on a loopback address.

A browser keeps no token that a page elsewhere could use: changes need the header ``Authorization: Bearer``, which no
other site can send. For reading pages where that needs the token too, :data:`COOKIE` holds a proof of it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from srr_stream.web.problems import DeskError

COOKIE = "srr_session"
TOKEN_FILE = "api-token"
OPEN_PATHS = frozenset({"/livez", "/readyz", "/sign-in", "/sign-in.js", "/sign-in.css"})
"""Nothing of these needs anything."""
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_CHANGES_NOTHING = frozenset({("POST", "/v1/score")})
_OTHER_SITES = frozenset({"cross-site", "same-site"})
_MIN_TOKEN = 16
"""Characters: a shorter one can be guessed."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address.

    Examples
    --------
    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "srr.example.com")]
    [True, True, True, False, False]
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def own_token(folder: Path) -> str:
    """Return the token of a state folder; the first time it is made.

    Raises
    ------
    OSError
        If the folder cannot be written, or the file cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / TOKEN_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token = path.read_text(encoding="utf-8").strip()
        if len(token) >= _MIN_TOKEN:
            path.chmod(0o600)
            return token
        path.unlink()  # torn: whoever made it died while writing
        return own_token(folder)
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(token + "\n")
    return token


@dataclass(frozen=True)
class Access:
    """Decides over requests.

    Parameters
    ----------
    token
        Compared in a time that says nothing of it.
    is_open
        Whether reading needs no token: on a loopback address.
    hosts
        Names that a request may give as its host where reading is open, beside those of loopback addresses: else a page
        elsewhere, whose name is made to lead here, could read through somebody's browser.
    """

    token: str
    is_open: bool
    hosts: Collection[str] = ()

    def __repr__(self) -> str:
        return f"Access(is_open={self.is_open}, hosts={self.hosts!r})"

    def check(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Raise `DeskError`, unauthorized or forbidden, unless a request may be answered.

        Parameters
        ----------
        headers
            Names in small letters.
        """
        if path in OPEN_PATHS:
            return
        if self.is_open:
            self._check_host(headers.get("host", ""))
        if method not in _READING:
            _check_origin(headers)
        is_reading = method in _READING or (method, path) in _CHANGES_NOTHING
        if is_reading and (self.is_open or self._has_session(headers)):
            return
        if not self._has_token(headers):
            what = "reading here" if is_reading else "changing something"
            given = "a wrong one is given" if "authorization" in headers else "none is given"
            raise DeskError(
                "unauthorized", detail=f"{what} needs the header 'Authorization: Bearer TOKEN', and {given}"
            )

    def session(self) -> str:
        """Return the proof of the token that a browser's cookie holds; the token cannot be told from it."""
        return hmac.new(self.token.encode(), b"srr-stream: reading the page", hashlib.sha256).hexdigest()

    def _has_token(self, headers: Mapping[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token.encode())

    def _has_session(self, headers: Mapping[str, str]) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self.session().encode())

    def _check_host(self, host: str) -> None:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if not is_loopback(name) and name not in self.hosts:
            raise DeskError(
                "forbidden",
                detail=f"host {host[:100]!r} is none of this machine's; use http://127.0.0.1, or set api.public_url",
            )


def _check_origin(headers: Mapping[str, str]) -> None:
    """Refuse what a page of another site sends through somebody's browser."""
    origin = headers.get("origin")
    is_other = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    if is_other or headers.get("sec-fetch-site") in _OTHER_SITES:
        raise DeskError("forbidden", detail="pages of other sites may send nothing here")
