"""Verdicts into Kafka: all to a scores topic, flagged ones to an alerts topic, bad records to a dead-letter topic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from consumers.errors import SinkError
from consumers.kafka_client import connect, existing_partitions, make_consumer, servers, translated
from consumers.records import BadRecord, Verdicts
from consumers.sinks.serialization import (
    MAX_VALUE_SIZE,
    Header,
    alert_headers,
    dead_letter_headers,
    flagged_rows,
    verdict_bodies,
)

if TYPE_CHECKING:
    from kafka.producer.future import FutureRecordMetadata

_LINGER_MS = 5
_BATCH_BYTES = 128 * 1024


class KafkaSink:
    """Write with an idempotent producer that waits for all in-sync replicas.

    Parameters
    ----------
    connection
        kafka-python's settings of a connection: ``bootstrap_servers``, ``security_protocol``, …
    scores_topic, alerts_topic
        Where all verdicts, and the flagged ones, go; None: nowhere.
    include_record
        Put the record itself into its verdict.
    flush_timeout_s
        A broker that confirms nothing for so long is taken for lost.

    Raises
    ------
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
        flush_timeout_s: float = 30.0,
    ) -> None:
        from kafka import KafkaProducer

        self._where = servers(connection)
        self._scores_topic = scores_topic
        self._alerts_topic = alerts_topic
        self._dead_letter_topic = dead_letter_topic
        self._include_record = include_record
        self._flush_timeout_s = flush_timeout_s
        self._pending: list[FutureRecordMetadata] = []
        self._is_closed = False
        timeout_ms = int(flush_timeout_s * 1000)
        with translated(self._where):
            probe = make_consumer(connection)
            try:
                topics = [t for t in (scores_topic, alerts_topic, dead_letter_topic) if t]
                existing_partitions(probe, topics, where=self._where)
            finally:
                probe.close(autocommit=False, timeout_ms=1000)
            self._producer = connect(
                KafkaProducer,
                connection,
                acks="all",
                enable_idempotence=True,
                linger_ms=_LINGER_MS,
                batch_size=_BATCH_BYTES,
                max_block_ms=timeout_ms,
                request_timeout_ms=min(timeout_ms, 10_000),
                delivery_timeout_ms=max(timeout_ms, min(timeout_ms, 10_000) + _LINGER_MS),
            )

    def write(self, verdicts: Verdicts) -> None:
        """Hand the verdicts of a batch to the producer."""
        bodies = list(verdict_bodies(verdicts, include_record=self._include_record))
        raw = verdicts.batch.raw
        if self._scores_topic is not None:
            for record, body in zip(raw, bodies, strict=True):
                self._send(self._scores_topic, record.key, body, [])
        if self._alerts_topic is not None:
            times = verdicts.batch.time_ms
            for row in flagged_rows(verdicts):
                headers = alert_headers(raw[row], int(times[row]))
                self._send(self._alerts_topic, raw[row].key, bodies[row], headers)

    def write_bad(self, bad: Sequence[BadRecord]) -> None:
        """Hand bad records to the producer, key, bytes and headers untouched.

        But for what cannot be written, because one such record would stop the stream for ever: a value that no message
        can hold is left out, and ``srr-value-omitted`` tells its bytes; a header that is null, and a value that is null
        beside a key that is null, become empty, as kafka-python takes neither. The record itself lies at its offset.
        """
        for record in bad:
            key, value = record.raw.key, record.raw.value
            headers = [(name, content or b"") for name, content in dead_letter_headers(record)]
            if value is not None and len(value) > MAX_VALUE_SIZE:
                headers.append(("srr-value-omitted", str(len(value)).encode()))
                value = None
            self._send(self._dead_letter_topic, key, b"" if key is None and value is None else value, headers)

    def flush(self) -> None:
        """Return when every record since the last flush is confirmed by all in-sync replicas.

        Raises
        ------
        SinkError
            If one is not, or not in time. What was written counts for nothing then: commit nothing, start again.
        """
        from kafka.errors import KafkaError

        pending, self._pending = self._pending, []
        try:
            self._producer.flush(self._flush_timeout_s)
            for future in pending:
                if not future.is_done:
                    raise SinkError(self._lost(f"nothing confirmed within {self._flush_timeout_s:g} s"))
                if future.failed():
                    raise SinkError(self._lost(str(future.exception))) from future.exception
        except KafkaError as error:
            raise SinkError(self._lost(str(error))) from error

    def close(self) -> None:
        """Drop what was not flushed; twice is fine."""
        from kafka.errors import KafkaError

        if not self._is_closed:
            self._is_closed = True
            self._pending = []
            try:
                self._producer.close(timeout=0)
            except KafkaError:  # it insists on flushing; without a broker it would try for ever in its thread
                self._producer._sender.force_close()

    def _send(self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[Header]) -> None:
        from kafka.errors import KafkaError

        try:
            self._pending.append(self._producer.send(topic, value=value, key=key, headers=headers))
        except KafkaError as error:
            raise SinkError(self._lost(f"{topic}: {error}")) from error

    def _lost(self, why: str) -> str:
        return f"verdicts are not durable at {self._where}: {why}; nothing was committed, the records are scored again"
