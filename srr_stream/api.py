"""The HTTP endpoint of a role: ``/metrics``, ``/livez`` and ``/readyz`` for probes, ``/statusz``, heat maps."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qsl
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import orjson
from prometheus_client import CollectorRegistry, make_wsgi_app

from srr_stream.errors import NoHeatMap
from srr_stream.health import Health
from srr_stream.heat_maps import PATH, HeatMaps
from srr_stream.statusz import Statusz

_Environ = dict[str, Any]
_StartResponse = Callable[..., Any]

_RECORD = re.compile(rf"{PATH}([A-Za-z0-9._-]{{1,249}})/([0-9]{{1,9}})/([0-9]{{1,18}})\.png")
_VERSION = re.compile("[0-9]{1,18}")
_TICK_S = 0.1
"""How often the server looks whether it shall close."""
_SAME_S = 0.25
"""Scrapes within this time get the same text: to write it takes milliseconds, for which scoring has to wait."""
_NOT_READY = "503 Service Unavailable"
_STATUS = {"not_found": "404 Not Found", "no_picture": "409 Conflict", "not_ready": _NOT_READY}
"""Of the reasons why there is no heat map."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a probe a second is not worth a line."""


class _Scrapes:
    """The metrics as text, in the format that is asked for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._write = make_wsgi_app(registry)
        self._lock = threading.Lock()
        self._asked: tuple[str, ...] = ()
        self._until = 0.0
        self._head: tuple[Any, ...] = ()
        self._body: Sequence[bytes] = ()

    def answer(self, environ: _Environ, start_response: _StartResponse) -> Iterable[bytes]:
        asked = tuple(
            environ.get(name, "") for name in ("REQUEST_METHOD", "HTTP_ACCEPT", "HTTP_ACCEPT_ENCODING", "QUERY_STRING")
        )
        with self._lock:
            if asked != self._asked or time.monotonic() >= self._until:
                self._body = list(self._write(environ, self._note))
                self._asked, self._until = asked, time.monotonic() + _SAME_S
            status, headers = self._head
            start_response(status, list(headers))
            return self._body

    def _note(self, status: str, headers: list[tuple[str, str]]) -> None:
        self._head = status, headers


class HttpEndpoint:
    """Serve metrics and health until closed.

    Parameters
    ----------
    port
        0 takes a free one; see :attr:`port` for which.
    heat_maps
        Serve these as well.
    statusz
        Asked for what ``/statusz`` says, with whether its ``?history=1`` is wanted. None: there is none.

    Raises
    ------
    OSError
        If the port is taken.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        registry: CollectorRegistry,
        health: Health,
        heat_maps: HeatMaps | None = None,
        statusz: Statusz | None = None,
    ) -> None:
        self._scrapes = _Scrapes(registry)
        self._health = health
        self._heat_maps = heat_maps
        self._statusz = statusz
        try:
            self._server = make_server(host, port, self._answer, server_class=_Server, handler_class=_QuietHandler)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot listen on {host}:{port}: {error.strerror}; change http.*_port"
            ) from error
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_TICK_S,), name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; twice is fine."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: _Environ, start_response: _StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            return self._scrapes.answer(environ, start_response)
        if path == "/livez":
            health = self._health
            text = "alive" if health.is_live else f"the loop has been silent for {health.silent_for_s:.0f} s"
            return _text(start_response, _ready(health.is_live), text)
        if path == "/readyz":
            return _text(start_response, _ready(self._health.is_ready), self._health.reason)
        if self._statusz is not None and path == "/statusz":
            with_history = ("history", "1") in parse_qsl(environ.get("QUERY_STRING", ""))
            return _json(start_response, self._statusz(with_history))
        if self._heat_maps is not None and path.startswith(PATH):
            return _heat_map(self._heat_maps, environ, start_response)
        there = ["/metrics", "/livez", "/readyz"]
        there += ["/statusz"] if self._statusz is not None else []
        there += [PATH] if self._heat_maps is not None else []
        return _text(start_response, "404 Not Found", f"there are {', '.join(there[:-1])} and {there[-1]}")


def _heat_map(heat_maps: HeatMaps, environ: _Environ, start_response: _StartResponse) -> Iterable[bytes]:
    if environ["REQUEST_METHOD"] != "GET":
        return _text(start_response, "405 Method Not Allowed", "allowed: GET")
    record = _RECORD.fullmatch(environ["PATH_INFO"])
    if record is None:
        allowed = f"{PATH}{{topic}}/{{partition}}/{{offset}}.png, with whole numbers"
        return _text(start_response, "404 Not Found", f"allowed: {allowed}")
    asked = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    if len(asked) > 1 or any(name != "version" or not _VERSION.fullmatch(value) for name, value in asked):
        return _text(start_response, "400 Bad Request", "allowed: nothing or ?version=N, a whole number")
    topic, partition, offset = record.groups()
    try:
        drawn = heat_maps.draw(topic, int(partition), int(offset), int(asked[0][1]) if asked else None)
    except NoHeatMap as error:
        return _text(start_response, _STATUS[error.reason], str(error))
    headers = [
        ("Content-Type", "image/png"),
        ("Content-Length", str(len(drawn.png))),
        ("X-Srr-Severity", f"{drawn.severity:.6g}"),
        ("X-Srr-Version", str(drawn.version)),
    ]
    start_response("200 OK", headers)
    return [drawn.png]


def _json(start_response: _StartResponse, content: Mapping[str, Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
    return [orjson.dumps(content)]


def _ready(is_so: bool) -> str:
    return "200 OK" if is_so else _NOT_READY


def _text(start_response: _StartResponse, status: str, text: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode() + b"\n"]
