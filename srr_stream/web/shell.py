"""What stands around every request: limits, access, headers of the answer, and an answer even to a defect."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from urllib.parse import quote

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from srr_stream.web.access import Access
from srr_stream.web.problems import MEDIA_TYPE, PROBLEMS, DeskError, problem

log = logging.getLogger(__name__)

MAX_BODY = 8 << 20
"""Bytes of a request."""
DEFECT = "it is in the log of srr-stream; please report it"
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer that does not have them already."""


class Shell:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, *, access: Access, on_answer: Callable[[int], None] = lambda status: None) -> None:
        self._app = app
        self._access = access
        self._on_answer = on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, is_head=scope["method"] == "HEAD", on_answer=self._on_answer)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        body = _Body(receive, headers.get("content-length", ""))
        try:
            self._access.check(scope["method"], scope["path"], headers)
            body.check_length()
            inside = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
            await self._app(inside, body.receive, answer.send)
        except DeskError as error:
            if error.problem_type == "unauthorized" and _wants_page(scope, headers):
                asked = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
                await answer.redirect(f"/sign-in?next={quote(asked, safe='')}")
            else:
                await answer.problem(error.problem_type, error.detail)
        except Exception:  # top of a request: whatever it dies of, it gets an answer and the others go on
            log.exception("%s %s failed", scope["method"], scope["path"])
            await answer.problem("internal", DEFECT)


def _wants_page(scope: Scope, headers: Mapping[str, str]) -> bool:
    is_page = not scope["path"].startswith("/v1/") and scope["method"] == "GET"
    return is_page and "text/html" in headers.get("accept", "")


class _TooLarge(DeskError):
    def __init__(self) -> None:
        super().__init__("too_large", detail=f"a request may have {MAX_BODY:,} bytes; send fewer records at once")


class _Body:
    """The body of a request, up to a limit."""

    def __init__(self, receive: Receive, length: str) -> None:
        self._receive = receive
        self._length = length
        self._n_bytes = 0

    def check_length(self) -> None:
        if self._length.isdigit() and int(self._length) > MAX_BODY:
            raise _TooLarge

    async def receive(self) -> Message:
        message = await self._receive()
        self._n_bytes += len(message.get("body", b""))
        if self._n_bytes > MAX_BODY:
            raise _TooLarge
        return message


class _Answer:
    """An answer on its way, with the headers that all have; without its body if only the head was asked for."""

    def __init__(self, send: Send, *, is_head: bool, on_answer: Callable[[int], None]) -> None:
        self._send = send
        self._is_head = is_head
        self._on_answer = on_answer
        self._has_begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_begun = True
            self._on_answer(message["status"])
            there = {name.lower() for name, _ in message["headers"]}
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {
                **message,
                "headers": [*message["headers"], *(header for header in more if header[0].lower() not in there)],
            }
        elif self._is_head and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await self._send(message)

    async def problem(self, problem_type: str, detail: str) -> None:
        body = orjson.dumps(problem(problem_type, detail))
        more = [(b"www-authenticate", b"Bearer")] if problem_type == "unauthorized" else []
        await self._whole(PROBLEMS[problem_type][0], body, [(b"content-type", MEDIA_TYPE.encode()), *more])

    async def redirect(self, address: str) -> None:
        await self._whole(303, b"", [(b"location", address.encode())])

    async def _whole(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        if self._has_begun:  # too late for another answer: the connection is closed in its middle
            return
        length = (b"content-length", str(len(body)).encode())
        await self.send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
        await self.send({"type": "http.response.body", "body": body})
