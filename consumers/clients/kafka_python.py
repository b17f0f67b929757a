"""Members and writers by kafka-python."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from consumers.clients import Events, Failure, Membership, MovedOn, NothingCommitted, OutOfRange, WriteFailed
from consumers.errors import MembershipLost
from consumers.kafka_client import connect, existing_partitions, make_consumer, servers, translated
from consumers.polled import Polled, Run
from consumers.records import Position, RawRecord

if TYPE_CHECKING:
    from kafka import TopicPartition
    from kafka.errors import KafkaError
    from kafka.producer.future import FutureRecordMetadata
    from kafka.producer.transaction_manager import TransactionalRequestResult
    from kafka.structs import ConsumerGroupMetadata

_CLOSE_TIMEOUT_MS = 3000
_ANSWER_TIMEOUT_MS = 5000
"""For a question to a broker between two polls."""
_LINGER_MS = 5
_BATCH_BYTES = 128 * 1024


class KafkaPythonMember:
    """A :class:`consumers.clients.Member`."""

    def __init__(
        self, connection: Mapping[str, Any], topics: Sequence[str], membership: Membership, events: Events
    ) -> None:
        from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

        self._where = servers(connection)
        self._session_timeout_ms = int(membership.session_timeout_s * 1000)
        with translated(self._where):
            self._consumer = make_consumer(
                connection,
                group_id=membership.group_id,
                group_instance_id=membership.instance_id,
                auto_offset_reset="none",  # what is lost is counted, and decided on
                isolation_level=membership.isolation_level,
                max_poll_records=membership.max_batch,
                session_timeout_ms=self._session_timeout_ms,
                heartbeat_interval_ms=self._session_timeout_ms // 10,
                max_poll_interval_ms=int(membership.max_poll_interval_s * 1000),
                partition_assignment_strategy=(CooperativeStickyAssignor,),
            )
            try:
                self._consumer.subscribe(topics=list(topics), listener=_listener(events))
            except BaseException:
                self.close()
                raise

    def poll(self, timeout_s: float, max_records: int) -> Polled:
        """Return the next records."""
        from kafka import errors

        with translated(self._where):
            try:
                records = self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records)
            except errors.NoOffsetForPartitionError as error:
                raise NothingCommitted(_positions(error.args[0])) from error
            except errors.OffsetOutOfRangeError as error:
                raise OutOfRange({_position(tp): offset for tp, offset in error.args[0].items()}) from error
            except errors.FencedInstanceIdError as error:
                raise MembershipLost(str(error)) from error
        coordinator = self._consumer._coordinator
        if coordinator.stable() and not coordinator.rejoining and not coordinator._heartbeat_enabled:
            # All that its heartbeat makes of being fenced is to stop; it would go on reading what is another's.
            raise MembershipLost("its heartbeat is refused, FencedInstanceIdError")
        return _polled(records)

    def stay(self) -> None:
        """Count as a poll."""
        with translated(self._where):
            self._consumer._coordinator.poll_heartbeat()

    def partitions(self, topics: Sequence[str]) -> frozenset[Position]:
        """Return all partitions of topics."""
        with translated(self._where):
            return _positions(existing_partitions(self._consumer, topics, where=self._where))

    def begins(self, partitions: Collection[Position]) -> dict[Position, int]:
        """Ask for the first offset of each partition."""
        with translated(self._where):
            return _offsets(self._consumer.beginning_offsets(_named(partitions), timeout_ms=_ANSWER_TIMEOUT_MS))

    def ends(self, partitions: Collection[Position]) -> dict[Position, int]:
        """Ask for the end of each partition."""
        with translated(self._where):
            return _offsets(self._consumer.end_offsets(_named(partitions), timeout_ms=_ANSWER_TIMEOUT_MS))

    def seek(self, partition: Position, offset: int) -> None:
        """Go on at this offset."""
        self._consumer.seek(*_named([partition]), offset)

    def send_commit(self, offsets: Mapping[Position, int]) -> _SentCommit:
        """Begin to commit these: they are sent by the next poll."""
        return _SentCommit(self, offsets)

    def commit(self, offsets: Mapping[Position, int]) -> None:
        """Return when they are committed, tried again and again for the session timeout."""
        from kafka import errors

        with translated(self._where):
            try:
                self._consumer.commit(_with_metadata(offsets), timeout_ms=self._session_timeout_ms)
            except (
                errors.CommitFailedError,
                errors.IllegalGenerationError,
                errors.UnknownMemberIdError,
                errors.RebalanceInProgressError,
            ) as error:
                raise MovedOn(str(error)) from error

    def pause(self, partitions: Collection[Position]) -> None:
        """Give nothing of these."""
        self._consumer.pause(*_named(partitions))

    def resume(self, partitions: Collection[Position]) -> None:
        """Give records of these again."""
        self._consumer.resume(*_named(partitions))

    def next_offset(self, partition: Position) -> int | None:
        """Return what is read next, without asking a broker, unlike ``KafkaConsumer.position``."""
        (named,) = _named([partition])
        position = self._consumer._subscription.assignment[named].position
        return None if position is None else int(position.offset)

    def known_end(self, partition: Position) -> int | None:
        """Return the end of a partition as of the last answer."""
        (named,) = _named([partition])
        end: int | None = self._consumer.highwater(named)
        return end

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close(autocommit=False, timeout_ms=_CLOSE_TIMEOUT_MS)

    @property
    def assignment(self) -> frozenset[Position]:
        """The partitions that this member owns."""
        return _positions(self._consumer.assignment())

    @property
    def is_rebalancing(self) -> bool:
        """Whether the group is."""
        return bool(self._consumer._coordinator.rebalance_in_progress())

    @property
    def reaches_coordinator(self) -> bool:
        """Whether the group's coordinator is known."""
        return self._consumer._coordinator.coordinator() is not None

    @property
    def metadata(self) -> ConsumerGroupMetadata | None:
        """The member's generation and name; None if it hears that it is out, for then it forgets its name."""
        known = self._consumer.group_metadata()
        return None if known.generation_id < 0 else known


class _SentCommit:
    """A :class:`consumers.clients.PendingCommit`."""

    def __init__(self, member: KafkaPythonMember, offsets: Mapping[Position, int]) -> None:
        self._member = member
        self._offsets = offsets
        self._coordinator = member._consumer._coordinator
        send = self._coordinator._send_offset_commit_request
        # What the consumer's own method gives is done, where the coordinator is not known, as soon as it is found.
        self._future = self._coordinator._manager.call_soon(send, _with_metadata(offsets))

    def wait(self, timeout_s: float | None) -> bool:
        if not self._future.is_done and timeout_s != 0.0:
            timeout_ms = None if timeout_s is None else 1000 * timeout_s
            with suppress(Exception):  # the future has it, or nothing is known
                self._coordinator._net.run(self._coordinator._manager.wait_for, self._future, timeout_ms)
        return bool(self._future.is_done)

    def result(self, timeout: float | None = None) -> None:
        self.wait(timeout)
        if not (self._future.is_done and self._future.succeeded()):
            self._member.commit(self._offsets)


class KafkaPythonWriter:
    """A :class:`consumers.clients.Writer`."""

    def __init__(
        self, connection: Mapping[str, Any], *, max_message_size: int, timeout_s: float, transactional_id: str | None
    ) -> None:
        from kafka import KafkaProducer

        self._pending: list[FutureRecordMetadata] = []
        self._awaited: TransactionalRequestResult | None = None
        self._is_open = False
        """Whether a transaction is."""
        timeout_ms = int(timeout_s * 1000)
        with translated(servers(connection), transactional_id=transactional_id):
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
                    self.close(0.0)
                    raise

    def send(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Sequence[Any]) -> None:
        """Take a message. Null headers, and a null value beside a null key, become empty: it takes neither."""
        if key is None and value is None:
            value = b""
        named = [(name, content or b"") for name, content in headers]
        with self._failing():
            future = self._producer.send(topic, value=value, key=key, headers=named, partition=partition)
        self._pending.append(future)

    def flush(self, timeout_s: float) -> bool:
        """Return whether every message is confirmed."""
        from kafka.errors import KafkaTimeoutError

        with self._failing():
            try:
                self._producer.flush(timeout_s)
            except KafkaTimeoutError:
                return False
            pending, self._pending = self._pending, []
            for future in pending:
                if not future.is_done:
                    raise WriteFailed("a message was neither confirmed nor refused")
                if future.failed():
                    raise future.exception
        return True

    def begin(self) -> None:
        """Open a transaction."""
        with self._failing():
            self._producer.begin_transaction()
        self._is_open = True

    def send_offsets(self, offsets: Mapping[Position, int], metadata: ConsumerGroupMetadata, timeout_s: float) -> bool:
        """Add offsets to the open transaction."""
        # The producer's own methods would wait for ever.
        transaction = self._producer._transaction_manager
        return self._is_done(
            lambda: transaction.send_offsets_to_transaction(_with_metadata(offsets), metadata), timeout_s
        )

    def commit(self, timeout_s: float) -> bool:
        """Commit the open transaction."""
        is_done = self._is_done(self._producer._transaction_manager.begin_commit, timeout_s)
        self._is_open = not is_done
        return is_done

    def close(self, let_go_s: float) -> None:
        """Drop what is not confirmed."""
        from kafka.errors import KafkaError

        self._pending = []
        try:
            if self._is_open:
                result = self._producer._transaction_manager.begin_abort()
                self._producer._sender.wakeup()
                result.wait(timeout_ms=let_go_s * 1000)
            self._producer.close(timeout=0)
        except KafkaError:  # it insists on flushing; without a broker it would try for ever in its thread
            self._producer._sender.force_close()

    def _is_done(self, start: Callable[[], TransactionalRequestResult], timeout_s: float) -> bool:
        """Start something, or go on waiting for it; return whether it is done."""
        with self._failing():
            if self._awaited is None:
                self._awaited = start()
                self._producer._sender.wakeup()
            if not self._awaited.wait(timeout_ms=timeout_s * 1000):
                return False
        self._awaited = None
        return True

    @contextmanager
    def _failing(self) -> Iterator[None]:
        from kafka.errors import KafkaError

        try:
            yield
        except KafkaError as error:
            # Once it failed, a transaction answers everything with a general error; the reason is kept beside.
            transaction = self._producer._transaction_manager
            cause = (transaction.last_error if transaction is not None else None) or error
            raise WriteFailed(cause, _failure(cause)) from error


def _failure(error: KafkaError) -> Failure:
    from kafka import errors

    if isinstance(error, errors.AuthorizationError):
        return Failure.RIGHTS
    if isinstance(error, errors.MessageSizeTooLargeError):
        return Failure.TOO_LARGE
    taken_over = (
        errors.ProducerFencedError,
        errors.InvalidProducerEpochError,
        errors.CommitFailedError,
        errors.FencedInstanceIdError,
        errors.IllegalGenerationError,
        errors.UnknownMemberIdError,
    )
    return Failure.TAKEN_OVER if isinstance(error, taken_over) else Failure.OTHER


def _position(partition: TopicPartition) -> Position:
    return partition.topic, partition.partition


def _positions(partitions: Iterable[TopicPartition]) -> frozenset[Position]:
    return frozenset(map(_position, partitions))


def _named(partitions: Iterable[Position]) -> list[TopicPartition]:
    from kafka import TopicPartition

    return [TopicPartition(*partition) for partition in partitions]


def _offsets(found: Mapping[TopicPartition, int]) -> dict[Position, int]:
    return {_position(partition): offset for partition, offset in found.items()}


def _with_metadata(offsets: Mapping[Position, int]) -> dict[TopicPartition, Any]:
    from kafka import OffsetAndMetadata, TopicPartition

    return {TopicPartition(*partition): OffsetAndMetadata(offset) for partition, offset in offsets.items()}


def _polled(records: Mapping[TopicPartition, Sequence[RawRecord]]) -> Polled:
    """Return records by partition as a poll."""
    runs = [Run(tp.topic, tp.partition, len(of), of[-1].offset + 1) for tp, of in records.items() if of]
    return Polled([record for of in records.values() for record in of], runs)


def _listener(events: Events) -> Any:
    """Return kafka-python's listener; made here so that importing this module needs no Kafka client."""
    from kafka import ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
        def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
            events.gone(_positions(revoked))

        def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
            events.gone(_positions(lost))

        def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
            events.assigned(_positions(assigned))

    return Listener()
