"""A tail: topics read without a group, from their beginning and on as they grow, by a thread of its own.

For what must know all of a topic, or its newest part, and keep up: labels, alerts. A batch is handed on at least once;
who takes it knows doubles by their offsets. Reading without end in the group's name is :mod:`consumers.sources`', a
range of offsets :mod:`consumers.logs`'.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

from consumers.errors import ConsumersError
from consumers.kafka_client import existing_partitions, make_consumer, servers, translated
from consumers.logs import KafkaLog
from consumers.records import Position, RawRecord

log = logging.getLogger(__name__)

_AT_ONCE = 1000
_POLL_S = 0.2
_FIRST_REST_S = 0.5
_MAX_REST_S = 15.0
_STEADY_S = 30.0
"""A connection that lasted so long was good: the next one is tried soon again."""
_LOOK_EVERY_S = 5.0
"""How often a broker is asked for a sign of life: a consumer without a group waits for one that is gone for ever."""
_MAX_METADATA_AGE_MS = 30_000
"""New partitions are noticed within this time."""
_JOIN_S = 15.0
"""Longer than a connection that is being tried takes to fail."""


class Feed(Protocol):
    """An open connection to the topics of a tail."""

    ends: Mapping[Position, int]
    """The end of every partition, as it was when this was opened."""

    def poll(self, timeout_s: float) -> Sequence[RawRecord]:
        """Return the next records, maybe none; raise `ConsumersError` if the topics or the broker are gone."""

    def positions(self) -> Mapping[Position, int]:
        """Return the next offset of every partition."""

    def close(self) -> None:
        """Let go."""


class TopicTail:
    """Hand on all that is and comes in some topics; reconnect by itself.

    Parameters
    ----------
    connection
        kafka-python's settings of a connection: ``bootstrap_servers``, ``security_protocol``, …
    on_records
        Called from the tail's thread with the next records, in order within a partition; never with none. If it raises,
        that is a :attr:`problem`, and the same records come again.
    last
        Begin so many offsets before the end of each partition; None: at its beginning. Partitions that come later are
        read from their beginning.
    name
        Of the thread, and for the log.
    open_feed
        Opens the connection, given the next offset of each partition that is known already; Kafka's if None.

    Aborted records are left out. A topic that is missing is looked for again and again.

    Examples
    --------
    >>> with_labels = TopicTail(["labels"], connection={"bootstrap_servers": "kafka:9092"}, on_records=print)
    >>> with_labels.caught_up.is_set(), with_labels.problem
    (False, None)
    """

    def __init__(
        self,
        topics: Sequence[str],
        *,
        connection: Mapping[str, Any],
        on_records: Callable[[Sequence[RawRecord]], None],
        last: int | None = None,
        name: str = "tail",
        open_feed: Callable[[Mapping[Position, int]], Feed] | None = None,
    ) -> None:
        self.caught_up = threading.Event()
        """Set when everything was handed on that was there at the first connection."""
        self.problem: str | None = None
        """Why nothing comes, in words; None if all is well."""
        self._name = name
        self._on_records = on_records
        self._open = open_feed or (lambda positions: _KafkaFeed(topics, connection, positions, last))
        self._next: dict[Position, int] = {}
        self._ends: Mapping[Position, int] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; nothing is handed on afterwards. Twice is fine, and so is never having started."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
            self._thread = None

    def _run(self) -> None:
        rest_s = _FIRST_REST_S
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                self._follow()
            except ConsumersError as error:
                self._note(str(error))
            except Exception as error:  # top of the thread: whoever takes the records may raise anything
                log.exception("%s: records could not be taken; they come again", self._name)
                self._note(f"{type(error).__name__}: {error}")
            if time.monotonic() - started > _STEADY_S:
                rest_s = _FIRST_REST_S
            self._stop.wait(rest_s)
            rest_s = min(2 * rest_s, _MAX_REST_S)

    def _follow(self) -> None:
        """Hand on what comes, until stopped or the connection fails."""
        with closing(self._open(dict(self._next))) as feed:
            self._ends = feed.ends if self._ends is None else self._ends
            while not self._stop.is_set():
                self._next.update(feed.positions())
                if all(self._next.get(position, 0) >= end for position, end in self._ends.items()):
                    self.caught_up.set()
                records = feed.poll(_POLL_S)
                if records and not self._stop.is_set():
                    self._on_records(records)
                self.problem = None

    def _note(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("%s: %s; it is tried again", self._name, problem)
        self.problem = problem


class _KafkaFeed:
    """Topics of Kafka, read from given offsets on."""

    def __init__(
        self, topics: Sequence[str], connection: Mapping[str, Any], positions: Mapping[Position, int], last: int | None
    ) -> None:
        self._topics = tuple(topics)
        self._where = servers(connection)
        self._next = dict(positions)
        with closing(KafkaLog(topics, connection=connection)) as ours:  # it checks the rights, too
            begins, self.ends = ours.beginnings(), ours.ends()
        if not positions and last is not None:
            self._next = {position: max(begins[position], end - last) for position, end in self.ends.items()}
        age_ms = min(int(connection.get("metadata_max_age_ms", _MAX_METADATA_AGE_MS)), _MAX_METADATA_AGE_MS)
        self._assigned: list[Any] = []
        with translated(self._where):
            self._consumer = make_consumer(
                {**connection, "metadata_max_age_ms": age_ms},
                isolation_level="read_committed",
                auto_offset_reset="earliest",  # what retention or compaction took meanwhile is left out
                max_poll_records=_AT_ONCE,
            )
            try:
                self._assign(begins)
            except BaseException:
                self.close()
                raise
        self._looked = time.monotonic()

    def poll(self, timeout_s: float) -> Sequence[RawRecord]:
        with translated(self._where):
            if time.monotonic() - self._looked > _LOOK_EVERY_S:
                self._look()
            polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        return [record for records in polled.values() for record in records]

    def positions(self) -> Mapping[Position, int]:
        with translated(self._where):
            for tp in self._assigned:  # markers of transactions and gaps of compaction count as read
                reached = self._consumer.position(tp, timeout_ms=int(_LOOK_EVERY_S * 1000))
                if reached is not None:
                    self._next[tp.topic, tp.partition] = reached
        return self._next

    def close(self) -> None:
        self._consumer.close(autocommit=False, timeout_ms=1000)

    def _look(self) -> None:
        """Raise if the broker or a topic is gone; take partitions that came."""
        self._consumer.end_offsets(self._assigned, timeout_ms=int(2 * _LOOK_EVERY_S * 1000))
        if existing_partitions(self._consumer, self._topics, where=self._where) != self._assigned:
            self._assign({})
        self._looked = time.monotonic()

    def _assign(self, begins: Mapping[Position, int]) -> None:
        self._assigned = existing_partitions(self._consumer, self._topics, where=self._where)
        self._consumer.assign(self._assigned)
        for tp in self._assigned:
            position = (tp.topic, tp.partition)
            self._next.setdefault(position, begins.get(position, 0))
            self._consumer.seek(tp, self._next[position])
