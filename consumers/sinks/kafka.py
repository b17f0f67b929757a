"""Verdicts into Kafka: all to a scores topic, flagged ones to an alerts topic, bad records to a dead-letter topic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from consumers.access import check_access
from consumers.errors import ConsumersError, MembershipLost, NotAuthorized, SinkError
from consumers.kafka_client import connect, existing_partitions, make_consumer, servers, translated
from consumers.records import BadRecord, Position, RawRecord, Verdicts
from consumers.sinks import just_wait
from consumers.sinks.serialization import (
    Header,
    alert_headers,
    dead_letter_headers,
    flagged_rows,
    verdict_bodies,
)

if TYPE_CHECKING:
    from kafka.errors import KafkaError
    from kafka.producer.future import FutureRecordMetadata
    from kafka.producer.transaction_manager import TransactionalRequestResult
    from kafka.structs import ConsumerGroupMetadata

_LINGER_MS = 5
_BATCH_BYTES = 128 * 1024
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
        review_url: str | None = None,
        max_message_size: int = 1 << 20,
        flush_timeout_s: float = 30.0,
        transactional_id: str | None = None,
    ) -> None:
        from kafka import KafkaProducer

        self._where = servers(connection)
        self._scores_topic = scores_topic
        self._alerts_topic = alerts_topic
        self._dead_letter_topic = dead_letter_topic
        self._include_record = include_record
        self._review_url = review_url
        self._max_message_size = max_message_size
        self._flush_timeout_s = flush_timeout_s
        self._pending: list[FutureRecordMetadata] = []
        self._is_open = False
        """Whether a transaction is."""
        self._is_closed = False
        timeout_ms = int(flush_timeout_s * 1000)
        topics = [t for t in (scores_topic, alerts_topic, dead_letter_topic) if t]
        with translated(self._where, transactional_id=transactional_id):
            check_access(connection, writes=topics, transactional_id=transactional_id, where=self._where)
            probe = make_consumer(connection)
            try:
                partitions = existing_partitions(probe, topics, where=self._where)
            finally:
                probe.close(autocommit=False, timeout_ms=1000)
            self._n_partitions = {topic: sum(tp.topic == topic for tp in partitions) for topic in topics}
            self._producer = connect(
                KafkaProducer,
                connection,
                acks="all",
                enable_idempotence=True,
                transactional_id=transactional_id,
                transaction_timeout_ms=timeout_ms,
                linger_ms=_LINGER_MS,
                batch_size=_BATCH_BYTES,
                max_request_size=max_message_size,
                max_block_ms=timeout_ms,
                request_timeout_ms=min(timeout_ms, 10_000),
                # Beyond what a flush waits for: were one message given up and a later one written, order would be lost.
                delivery_timeout_ms=4 * timeout_ms + 10_000,
            )
            if transactional_id is not None:
                try:
                    self._producer.init_transactions()
                except BaseException:
                    self.close()
                    raise

    def begin(self) -> None:
        """Open a transaction.

        Raises
        ------
        MembershipLost
            If another writer has taken over the transactional id.
        """
        with self._translated("begin a transaction"):
            self._producer.begin_transaction()
        self._is_open = True

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
        tell their bytes; a header that is null, and a value that is null beside a key that is null, become empty, as
        kafka-python takes neither. The record itself lies at its offset.
        """
        for record in bad:
            value = record.raw.value
            headers = [(name, content or b"") for name, content in dead_letter_headers(record)]
            if _size(None, None, headers) > self._max_message_size // 2:
                n_bytes = _size(None, None, headers)
                headers = [(name, content or b"") for name, content in dead_letter_headers(record, with_own=False)]
                headers.append(("srr-headers-omitted", str(n_bytes).encode()))
            if value is not None and _size(None, value, headers) > self._max_message_size - _OVERHEAD:
                headers.append(("srr-value-omitted", str(len(value)).encode()))
                value = None
            if record.raw.key is None and value is None:
                value = b""
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
        from kafka.errors import KafkaTimeoutError

        pending, self._pending = self._pending, []
        until = time.monotonic() + self._flush_timeout_s
        with self._translated("write"):
            while True:
                try:
                    self._producer.flush(min(_TICK_S, self._flush_timeout_s))
                    break
                except KafkaTimeoutError:
                    if time.monotonic() > until:
                        raise
                    while_waiting()
            for future in pending:
                if not future.is_done:
                    raise KafkaTimeoutError(f"nothing confirmed within {self._flush_timeout_s:g} s")
                if future.failed():
                    raise future.exception

    def commit(
        self, positions: Mapping[Position, int], membership: ConsumerGroupMetadata, while_waiting: Callable[[], None]
    ) -> None:
        """Commit the open transaction, with the next offsets of the group's member in it.

        Raises
        ------
        MembershipLost
            If the group has moved on, or another writer has taken over: nothing of the transaction counts.
        SinkError
            If it is not known whether the transaction counts. A new sink with the same id knows, before it writes.
        """
        from kafka import OffsetAndMetadata, TopicPartition

        offsets = {TopicPartition(*position): OffsetAndMetadata(offset) for position, offset in positions.items()}
        until = time.monotonic() + self._flush_timeout_s
        transaction = self._producer._transaction_manager  # its own methods would wait for ever
        with self._translated("commit the transaction"):
            self._await(transaction.send_offsets_to_transaction(offsets, membership), until, while_waiting)
            self._await(transaction.begin_commit(), until, while_waiting)
        self._is_open = False

    def close(self) -> None:
        """Drop what was not flushed, take back what was not committed; twice is fine."""
        from kafka.errors import KafkaError

        if self._is_closed:
            return
        self._is_closed = True
        self._pending = []
        try:
            if self._is_open:
                self._await(self._producer._transaction_manager.begin_abort(), time.monotonic() + _LET_GO_S, just_wait)
            self._producer.close(timeout=0)
        except KafkaError:  # it insists on flushing; without a broker it would try for ever in its thread
            self._producer._sender.force_close()

    def _send(self, topic: str, raw: RawRecord, value: bytes | None, headers: Sequence[Header]) -> None:
        from kafka.errors import KafkaError

        key = raw.key
        if key is not None and _size(key, value, headers) > self._max_message_size:
            headers = [*headers, ("srr-key-omitted", str(len(key)).encode())]
            key, value = None, value or b""
        partition = raw.partition % self._n_partitions[topic]
        try:
            future = self._producer.send(topic, value=value, key=key, headers=headers, partition=partition)
        except KafkaError as error:
            raise self._failure(f"write to {topic}", error) from error
        self._pending.append(future)

    def _await(self, result: TransactionalRequestResult, until: float, while_waiting: Callable[[], None]) -> None:
        from kafka.errors import KafkaTimeoutError

        self._producer._sender.wakeup()
        while not result.wait(timeout_ms=max(0.0, min(_TICK_S, until - time.monotonic())) * 1000):
            if time.monotonic() > until:
                raise KafkaTimeoutError(f"no answer within {self._flush_timeout_s:g} s")
            while_waiting()

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        from kafka.errors import KafkaError

        try:
            yield
        except KafkaError as error:
            raise self._failure(what, error) from error

    def _failure(self, what: str, error: KafkaError) -> ConsumersError:
        """Return an error of kafka-python in our words, by who must act."""
        from kafka import errors

        # Once it failed, a transaction answers everything with a general error; the reason is kept beside.
        transaction = self._producer._transaction_manager
        cause = (transaction.last_error if transaction is not None else None) or error
        if isinstance(cause, errors.AuthorizationError):
            return NotAuthorized(f"{self._where}: cannot {what}: {cause}; check the credentials and their rights")
        if isinstance(cause, _taken_over()):
            return MembershipLost(
                f"{self._where}: cannot {what}, another has taken over: {cause}; nothing of the batch counts, it is "
                "scored again. If this repeats, two scorers have the same input.instance_id, or a batch takes longer "
                "than output.flush_timeout"
            )
        if isinstance(cause, errors.MessageSizeTooLargeError):
            cause = f"{cause}; raise max.message.bytes of the output topics or lower output.max_message_size"
        return SinkError(
            f"verdicts are not durable at {self._where}: cannot {what}: {cause}; "
            "nothing was committed, the records are scored again"
        )


def _taken_over() -> tuple[type[KafkaError], ...]:
    """Return the errors that tell a writer or member that another one goes on in its place."""
    from kafka import errors

    return (
        errors.ProducerFencedError,
        errors.InvalidProducerEpochError,
        errors.CommitFailedError,
        errors.FencedInstanceIdError,
        errors.IllegalGenerationError,
        errors.UnknownMemberIdError,
    )


def _size(key: bytes | None, value: bytes | None, headers: Sequence[Header]) -> int:
    """Return, a little generously, the bytes of a message."""
    parts = [key, value, *(part for name, content in headers for part in (name.encode(), content))]
    return sum(len(part) + 8 for part in parts if part is not None) + 256
