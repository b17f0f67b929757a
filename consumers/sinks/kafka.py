"""Verdicts into Kafka: all to a scores topic, flagged ones to an alerts topic, bad records to a dead-letter topic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from consumers.access import check_access
from consumers.clients import ClientName, Failure, WriteFailed, open_writer
from consumers.errors import ConsumersError, MembershipLost, NotAuthorized, SinkError
from consumers.kafka_client import existing_partitions, make_consumer, servers, translated
from consumers.records import BadRecord, Position, RawRecord, Verdicts
from consumers.sinks import just_wait
from consumers.sinks.serialization import (
    Header,
    alert_headers,
    dead_letter_headers,
    flagged_rows,
    verdict_bodies,
)

_LET_GO_S = 2.0
"""For taking back an open transaction while closing; the next writer with the same id does it otherwise."""
_TICK_S = 1.0
_OVERHEAD = 64 * 1024
"""Of a message, kept free beside a record for its key and what is said about it."""


class KafkaSink:
    """Write with an idempotent producer that waits for all in-sync replicas.

    What comes from partition p of an input topic goes to partition p modulo their number, so that an output partition
    has the order of the input's, whatever the keys are.

    Parameters
    ----------
    connection
        kafka-python's settings of a connection: ``bootstrap_servers``, ``security_protocol``, …
    scores_topic, alerts_topic
        Where all verdicts, and the flagged ones, go; None: nowhere.
    include_record
        Put the record itself into its verdict.
    review_url
        Where people look at flagged records, for their verdicts; None: nowhere.
    max_message_size
        Bytes of the largest message that the topics take (their ``max.message.bytes``).
    flush_timeout_s
        A broker that confirms nothing for so long is taken for lost; a transaction that is open for so long, too.
    transactional_id
        Write in transactions, as :class:`consumers.delivery.TransactionalSink` says. Of two writers with the same id
        the older one can write no more, and what it left open is taken back.
    client
        The library that writes; in transactions, that of the source.

    Raises
    ------
    LibraryMissing
        If the client library is not installed.
    BrokerUnavailable, TopicMissing, NotAuthorized
        If no broker answers, a topic does not exist (none is created), or the brokers refuse.
    """

    def __init__(
        self,
        connection: Mapping[str, Any],
        *,
        scores_topic: str | None,
        alerts_topic: str | None,
        dead_letter_topic: str,
        include_record: bool = False,
        review_url: str | None = None,
        max_message_size: int = 1 << 20,
        flush_timeout_s: float = 30.0,
        transactional_id: str | None = None,
        client: ClientName = ClientName.KAFKA_PYTHON,
    ) -> None:
        self._where = servers(connection)
        self._scores_topic = scores_topic
        self._alerts_topic = alerts_topic
        self._dead_letter_topic = dead_letter_topic
        self._include_record = include_record
        self._review_url = review_url
        self._max_message_size = max_message_size
        self._flush_timeout_s = flush_timeout_s
        self._is_closed = False
        topics = [t for t in (scores_topic, alerts_topic, dead_letter_topic) if t]
        with translated(self._where, transactional_id=transactional_id):
            check_access(connection, writes=topics, transactional_id=transactional_id, where=self._where)
            probe = make_consumer(connection)
            try:
                partitions = existing_partitions(probe, topics, where=self._where)
            finally:
                probe.close(autocommit=False, timeout_ms=1000)
        self._n_partitions = {topic: sum(tp.topic == topic for tp in partitions) for topic in topics}
        with self._translated("begin to write"):
            self._writer = open_writer(
                client,
                connection,
                max_message_size=max_message_size,
                timeout_s=flush_timeout_s,
                transactional_id=transactional_id,
            )

    def begin(self) -> None:
        """Open a transaction.

        Raises
        ------
        MembershipLost
            If another writer has taken over the transactional id.
        """
        with self._translated("begin a transaction"):
            self._writer.begin()

    def write(self, verdicts: Verdicts) -> None:
        """Hand the verdicts of a batch to the producer."""
        room = self._max_message_size - _OVERHEAD
        flagged = flagged_rows(verdicts)
        rows = range(len(verdicts)) if self._scores_topic is not None else flagged
        bodies = dict(
            zip(
                rows,
                verdict_bodies(
                    verdicts, rows, include_record=self._include_record, max_size=room, review_url=self._review_url
                ),
                strict=True,
            )
        )
        raw = verdicts.batch.raw
        if self._scores_topic is not None:
            for row, body in bodies.items():
                self._send(self._scores_topic, raw[row], body, [])
        if self._alerts_topic is not None:
            times = verdicts.batch.time_ms
            for row in flagged:
                headers = [*alert_headers(raw[row], int(times[row])), *verdicts.trace_headers.get(row, ())]
                self._send(self._alerts_topic, raw[row], bodies[row], headers)

    def write_bad(self, bad: Sequence[BadRecord]) -> None:
        """Hand bad records to the producer, key, bytes and headers untouched.

        But for what cannot be written, because one such record would stop the stream for ever: a value, key or headers
        that no message can hold are left out, and ``srr-value-omitted``, ``srr-key-omitted``, ``srr-headers-omitted``
        tell their bytes. The record itself lies at its offset.
        """
        for record in bad:
            value = record.raw.value
            headers = dead_letter_headers(record)
            if _size(None, None, headers) > self._max_message_size // 2:
                n_bytes = _size(None, None, headers)
                headers = dead_letter_headers(record, with_own=False)
                headers.append(("srr-headers-omitted", str(n_bytes).encode()))
            if value is not None and _size(None, value, headers) > self._max_message_size - _OVERHEAD:
                headers.append(("srr-value-omitted", str(len(value)).encode()))
                value = None
            self._send(self._dead_letter_topic, record.raw, value, headers)

    def flush(self, while_waiting: Callable[[], None] = just_wait) -> None:
        """Return when every record since the last flush is confirmed by all in-sync replicas.

        Raises
        ------
        SinkError
            If one is not, or not in time. What was written counts for nothing then: commit nothing, start again.
        MembershipLost
            If another writer has taken over the transactional id.
        """
        with self._translated("write"):
            self._wait_for(self._writer.flush, self._deadline(), while_waiting)

    def commit(self, positions: Mapping[Position, int], membership: Any, while_waiting: Callable[[], None]) -> None:
        """Commit the open transaction, with the next offsets of the group's member in it.

        Raises
        ------
        MembershipLost
            If the group has moved on, or another writer has taken over: nothing of the transaction counts.
        SinkError
            If it is not known whether the transaction counts. A new sink with the same id knows, before it writes.
        """
        until = self._deadline()
        with self._translated("commit the transaction"):
            self._wait_for(partial(self._writer.send_offsets, positions, membership), until, while_waiting)
            self._wait_for(self._writer.commit, until, while_waiting)

    def close(self) -> None:
        """Drop what was not flushed, take back what was not committed; twice is fine."""
        if not self._is_closed:
            self._is_closed = True
            self._writer.close(_LET_GO_S)

    def _send(self, topic: str, raw: RawRecord, value: bytes | None, headers: Sequence[Header]) -> None:
        key = raw.key
        if key is not None and _size(key, value, headers) > self._max_message_size:
            headers = [*headers, ("srr-key-omitted", str(len(key)).encode())]
            key, value = None, value or b""
        with self._translated(f"write to {topic}"):
            self._writer.send(topic, raw.partition % self._n_partitions[topic], key, value, headers)

    def _deadline(self) -> float:
        return time.monotonic() + self._flush_timeout_s

    def _wait_for(self, is_done: Callable[[float], bool], until: float, while_waiting: Callable[[], None]) -> None:
        """Return when it is done; `is_done` waits for so long itself."""
        while not is_done(max(0.0, min(_TICK_S, until - time.monotonic()))):
            if time.monotonic() > until:
                raise WriteFailed(f"nothing confirmed within {self._flush_timeout_s:g} s")
            while_waiting()

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except WriteFailed as error:
            raise self._said(what, error) from error

    def _said(self, what: str, error: WriteFailed) -> ConsumersError:
        """Return a failure to write in our words, by who must act."""
        if error.failure == Failure.RIGHTS:
            return NotAuthorized(f"{self._where}: cannot {what}: {error}; check the credentials and their rights")
        if error.failure == Failure.TAKEN_OVER:
            return MembershipLost(
                f"{self._where}: cannot {what}, another has taken over: {error}; nothing of the batch counts, it is "
                "scored again. If this repeats, two scorers have the same input.instance_id, or a batch takes longer "
                "than output.flush_timeout"
            )
        advice = ""
        if error.failure == Failure.TOO_LARGE:
            advice = "; raise max.message.bytes of the output topics or lower output.max_message_size"
        return SinkError(
            f"verdicts are not durable at {self._where}: cannot {what}: {error}{advice}; "
            "nothing was committed, the records are scored again"
        )


def _size(key: bytes | None, value: bytes | None, headers: Sequence[Header]) -> int:
    """Return, a little generously, the bytes of a message."""
    parts = [key, value, *(part for name, content in headers for part in (name.encode(), content))]
    return sum(len(part) + 8 for part in parts if part is not None) + 256
