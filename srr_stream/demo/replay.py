"""A finite stream of records into a Kafka topic at a steady rate, every so many of them malformed on purpose."""

from __future__ import annotations

import math
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any, Literal

import orjson

from consumers.records import FieldKind, RecordSchema
from srr_stream.replay import TICK_S, open_producer, paced

MALFORMED_EVERY = 1000
_MARK = "\0here"
"""Stands for a token that is no JSON value, until the record is written."""


@dataclass(frozen=True, slots=True)
class Event:
    """One record of the replay; `index` counts from 0 and becomes its key."""

    index: int
    value: bytes
    is_malformed: bool


def make_stream(
    values: Iterable[bytes],
    every: int = MALFORMED_EVERY,
    *,
    schema: RecordSchema | None = None,
    format: Literal["json", "image"] = "json",
) -> Iterator[Event]:
    """Yield the records in order, every `every`-th spoilt, each time in another way.

    Parameters
    ----------
    values
        JSON objects, or the files of PNGs, as `format` says.
    schema
        What JSON objects must be. If given, fields are spoilt too: a number sent as text, a required field left out.
        If None, only what no schema allows is done.

    Examples
    --------
    >>> [event.value for event in make_stream([b'{"x": 1}'] * 4, every=2)]
    [b'{"x": 1}', b'{"x"', b'{"x": 1}', b'[{"x": 1}]']
    """
    ways = cycle(_ways(schema) if format == "json" else _WAYS_OF_PICTURES)
    for index, value in enumerate(values):
        is_malformed = index % every == every - 1
        yield Event(index, next(ways)(value) if is_malformed else value, is_malformed)


class Replay:
    """Produce `values` into `topic` from a thread of its own.

    Parameters
    ----------
    values
        JSON objects or PNGs; read as they are due.
    rate
        Records a second, by the clock: a delay is made up for. Key: the running index.
    n_at_once
        So many are produced at the start, as fast as can be: the log of a topic that was there before.
    hold_at
        From this index on records wait until :meth:`release`, and then keep to the rate; None: they do not.
    every, schema, format
        Which records are malformed, and how: see :func:`make_stream`.
    send_timeout_s
        How long the broker may take to accept or to confirm a record; longer ends the replay with an error.
    """

    def __init__(
        self,
        values: Iterable[bytes],
        bootstrap_servers: str,
        topic: str,
        *,
        rate: float,
        n_at_once: int = 0,
        hold_at: int | None = None,
        every: int = MALFORMED_EVERY,
        schema: RecordSchema | None = None,
        format: Literal["json", "image"] = "json",
        send_timeout_s: float = 20.0,
    ) -> None:
        if not (rate > 0 and math.isfinite(rate)):
            raise ValueError(f"rate is {rate!r}; allowed: records a second above 0")
        self.index_by_id: dict[str, int] = {}
        """``topic-partition-offset`` → index, of every record that the broker has confirmed."""
        self.malformed: set[int] = set()
        """Indices of what was spoilt on purpose, as far as confirmed."""
        self.error: Exception | None = None
        """What ended the replay before its end."""
        self.is_held = False
        """Whether it waits for :meth:`release`."""
        self._events = make_stream(values, every, schema=schema, format=format)
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._rate = rate
        self._n_at_once = n_at_once
        self._hold_at = hold_at
        self._held_s = 0.0
        self._released = threading.Event()
        self._send_timeout_s = send_timeout_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        self._is_done = threading.Event()

    @property
    def n_produced(self) -> int:
        """How many records the broker has confirmed."""
        return len(self.index_by_id)

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come: the end, a stop or an error; all that was sent is then settled."""
        return self._is_done.is_set()

    def start(self) -> None:
        """Begin; once only."""
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return whether the replay is done, after waiting for it at most so long."""
        return self._is_done.wait(timeout_s)

    def release(self) -> None:
        """Hold nothing back any more; twice is fine."""
        self._released.set()

    def stop(self) -> None:
        """Send nothing more and return when what was sent is settled; twice is fine."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._produce()
        except Exception as error:  # whoever started the thread learns of it, instead of the thread's own log
            self.error = error
        finally:
            self._is_done.set()

    def _produce(self) -> None:
        connection = {"bootstrap_servers": self._bootstrap_servers}
        producer = open_producer(connection, timeout_s=self._send_timeout_s)
        try:
            for event in self._paced():
                future = producer.send(self._topic, event.value, key=str(event.index).encode())
                future.add_callback(partial(self._confirm, event))
                future.add_errback(self._fail)
            producer.flush(self._send_timeout_s)
        finally:
            producer.close(timeout=self._send_timeout_s)

    def _paced(self) -> Iterator[Event]:
        """Yield every event when it is due, until told to stop."""
        for event in paced(self._events, self._due_s, self._stop.wait):
            if event.index == self._hold_at:
                self._held_s += self._held_for()
            if self._stop.is_set():
                return
            yield event

    def _due_s(self, index: int) -> float:
        return max(0, index - self._n_at_once) / self._rate + self._held_s

    def _held_for(self) -> float:
        """Return after how many seconds it is released, or told to stop."""
        since = time.monotonic()
        self.is_held = True
        while not (self._released.is_set() or self._stop.wait(TICK_S)):
            pass
        self.is_held = False
        return time.monotonic() - since

    def _confirm(self, event: Event, metadata: Any) -> None:
        if event.is_malformed:
            self.malformed.add(event.index)
        self.index_by_id[f"{metadata.topic}-{metadata.partition}-{metadata.offset}"] = event.index

    def _fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
        self._stop.set()


_Way = Callable[[bytes], bytes]


def _ways(schema: RecordSchema | None) -> list[_Way]:
    """Return ways to spoil a record, each of which leaves no doubt that it is bad."""
    ways: list[_Way] = [
        _cut,
        _in_an_array,
        partial(_spoilt, path=None, token=b"NaN"),
        partial(_spoilt, path=None, token=b"1e999"),
    ]
    fields = schema.fields if schema is not None else ()
    numeric = [field.path for field in fields if field.kind is FieldKind.NUMERIC]
    required = [field.path for field in fields if field.is_required]
    ways += [partial(_spoilt, path=path, token=b'"0"') for path in numeric[:1]]
    ways += [partial(_spoilt, path=path, token=None) for path in required[:1]]
    return ways


def _cut(value: bytes) -> bytes:
    value = value.rstrip()
    return value[: len(value) // 2]


def _in_an_array(value: bytes) -> bytes:
    return b"[" + value + b"]"


def _spoilt(value: bytes, *, path: tuple[str, ...] | None, token: bytes | None) -> bytes:
    """Put `token` where the value at `path` was (None: at the first key), or leave the key out if it is None."""
    try:
        record = orjson.loads(value)
    except orjson.JSONDecodeError:
        record = None
    if not isinstance(record, dict):
        return _cut(value)  # it was bad before; it stays bad
    *parents, last = path or list(record)[:1] or ["x"]
    node = record
    for key in parents:
        if not isinstance(node.get(key), dict):
            node[key] = {}
        node = node[key]
    if token is None:
        node.pop(last, None)
        return orjson.dumps(record)
    node[last] = _MARK
    return orjson.dumps(record).replace(orjson.dumps(_MARK), token)


def _empty(value: bytes) -> bytes:
    return b""


def _under_another_head(value: bytes) -> bytes:
    return b"GIF89a" + value


def _moving(value: bytes) -> bytes:
    """Say behind the header of a PNG that it has two frames."""
    if len(value) < _END_OF_HEADER:
        return _cut(value)  # it was bad before; it stays bad
    chunk = b"acTL" + struct.pack(">II", 2, 0)
    frames = struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return value[:_END_OF_HEADER] + frames + value[_END_OF_HEADER:]


def _with_a_page_behind(value: bytes) -> bytes:
    return value + b"<html></html>"


def _as_text(value: bytes) -> bytes:
    return orjson.dumps({"picture": value.hex()})


_END_OF_HEADER = 33
"""Bytes of a PNG up to the end of its first chunk."""
_WAYS_OF_PICTURES: list[_Way] = [_cut, _under_another_head, _moving, _empty, _with_a_page_behind, _as_text]
