"""A TCP proxy that passes bytes on until it is told to be cruel."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Callable

_CHUNK = 1 << 16


class FaultProxy:
    """Pass connections of a port on to a target.

    It reads the length-prefixed requests of Kafka's protocol on the way, so that a fault can wait for one kind of
    request: see :meth:`cut_reply_to`.
    """

    def __init__(self, port: int, target: tuple[str, int]) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", port))
        self._selector = selectors.DefaultSelector()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._streams: dict[socket.socket, _Requests] = {}
        self._lock = threading.Lock()
        self._api_key: int | None = None
        self._when: Callable[[], bool] = lambda: True
        self.n_cut = 0
        """How many connections were cut before a reply."""
        self._closed = threading.Event()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def cut_reply_to(self, api_key: int | None, when: Callable[[], bool] = lambda: True) -> None:
        """Let every request of this kind reach the broker, and cut the connection instead of passing on the reply.

        Parameters
        ----------
        api_key
            Of Kafka's protocol: 8 OffsetCommit, 26 EndTxn, 28 TxnOffsetCommit, 0 Produce. None: no more cuts.
        when
            Asked at each such request.
        """
        with self._lock:
            self._api_key, self._when = api_key, when

    def cut_all(self) -> None:
        """Cut every connection there is."""
        with self._lock:
            for client in list(self._streams):
                self._drop(client)

    def close(self) -> None:
        """Stop; twice is fine."""
        self._closed.set()
        self._thread.join()
        for held in [*self._pairs, self._server]:
            held.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            for key, _ in self._selector.select(timeout=0.1):
                with self._lock:
                    if key.fileobj is self._server:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._pairs:
                        self._pass_on(key.fileobj)

    def _accept(self) -> None:
        client, _ = self._server.accept()
        try:
            broker = socket.create_connection(self._target, timeout=2)
        except OSError:
            client.close()
            return
        self._pairs |= {client: broker, broker: client}
        self._streams[client] = _Requests()
        for one in (client, broker):
            self._selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket) -> None:
        other = self._pairs[source]
        client = source if source in self._streams else other
        try:
            content = source.recv(_CHUNK)
            if not content:
                self._drop(client)
                return
            requests = self._streams[client]
            if source is client:
                keys = requests.feed(content)
                other.sendall(content)
                if self._api_key in keys and self._when():
                    requests.is_doomed = True
            elif requests.is_doomed:
                self.n_cut += 1
                self._drop(client)
            else:
                other.sendall(content)
        except OSError:
            self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        broker = self._pairs.pop(client)
        del self._pairs[broker], self._streams[client]
        for one in (client, broker):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(one)
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no farewell
            one.close()


class _Requests:
    """The requests in one direction of a connection, cut at their lengths."""

    def __init__(self) -> None:
        self.is_doomed = False
        self._buffer = b""

    def feed(self, content: bytes) -> list[int]:
        """Return the API keys of the requests that end in `content`."""
        self._buffer += content
        keys = []
        while len(self._buffer) >= 4:
            (size,) = struct.unpack_from(">i", self._buffer)
            if len(self._buffer) < 4 + size:
                break
            keys.append(struct.unpack_from(">h", self._buffer, 4)[0])
            self._buffer = self._buffer[4 + size :]
        return keys
