"""The HTTP endpoint of a role: ``/metrics`` for Prometheus, ``/livez`` and ``/readyz`` for probes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from srr_stream.health import Health

_Environ = dict[str, Any]
_StartResponse = Callable[..., Any]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a probe a second is not worth a line."""


class HttpEndpoint:
    """Serve metrics and health until closed.

    Parameters
    ----------
    port
        0 takes a free one; see :attr:`port` for which.

    Raises
    ------
    OSError
        If the port is taken.
    """

    def __init__(self, host: str, port: int, *, registry: CollectorRegistry, health: Health) -> None:
        self._metrics = make_wsgi_app(registry)
        self._health = health
        try:
            self._server = make_server(host, port, self._answer, server_class=_Server, handler_class=_QuietHandler)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot listen on {host}:{port}: {error.strerror}; change http.*_port"
            ) from error
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; twice is fine."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: _Environ, start_response: _StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            return self._metrics(environ, start_response)  # type: ignore[no-any-return]  # prometheus_client: Any
        if path == "/livez":
            health = self._health
            text = "alive" if health.is_live else f"the loop has been silent for {health.silent_for_s:.0f} s"
            return _text(start_response, health.is_live, text)
        if path == "/readyz":
            return _text(start_response, self._health.is_ready, self._health.reason)
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"there are /metrics, /livez and /readyz\n"]


def _text(start_response: _StartResponse, is_ok: bool, text: str) -> Iterable[bytes]:
    start_response("200 OK" if is_ok else "503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode() + b"\n"]
