"""Records out of Kafka, as a member of a consumer group."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from consumers.errors import BrokerUnavailable
from consumers.kafka_client import existing_partitions, make_consumer, servers, translated
from consumers.records import Position, RawRecord

if TYPE_CHECKING:
    from kafka import TopicPartition

log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_MS = 3000


class KafkaSource:
    """Read topics together with the other members of a group.

    Neither commits by itself nor creates topics. While paused it stays in the group: heartbeats go on.

    Parameters
    ----------
    connection
        kafka-python's settings of a connection: ``bootstrap_servers``, ``security_protocol``, …
    start
        Where a group without committed offsets begins: ``earliest`` or ``latest``. Said out loud, because each is wrong
        for somebody.
    max_batch
        At most so many records a poll.
    session_timeout_s
        The group gives this member's partitions away when it is silent for so long, and this member gives the group
        up when it is: outages that are shorter pass unseen. Joining can take half of it.
    on_rebalance
        Called when partitions come or go, from inside a poll.

    Raises
    ------
    BrokerUnavailable, TopicMissing, NotAuthorized
        If no broker answers, a topic does not exist, or the brokers refuse.
    """

    def __init__(
        self,
        topics: Sequence[str],
        *,
        group_id: str,
        connection: Mapping[str, Any],
        start: str,
        max_batch: int = 5000,
        session_timeout_s: float = 45.0,
        on_rebalance: Callable[[], None] | None = None,
    ) -> None:
        from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

        self._where = servers(connection)
        self._session_timeout_s = session_timeout_s
        self._on_rebalance = on_rebalance
        self._is_paused = False
        self._is_closed = False
        with translated(self._where):
            self._consumer = make_consumer(
                connection,
                group_id=group_id,
                auto_offset_reset=start,
                max_poll_records=max_batch,
                session_timeout_ms=int(session_timeout_s * 1000),
                heartbeat_interval_ms=int(session_timeout_s * 1000 / 10),
                partition_assignment_strategy=(CooperativeStickyAssignor,),
            )
            try:
                existing_partitions(self._consumer, topics, where=self._where)
                self._consumer.subscribe(topics=list(topics), listener=_listener(self))
            except BaseException:
                self.close()
                raise
        self._reached_at = time.monotonic()

    def poll(self, timeout_s: float) -> Sequence[RawRecord]:
        """Return the next records, maybe none, in order within a partition; never block longer.

        Raises
        ------
        BrokerUnavailable
            If the group's coordinator could not be reached for the session timeout.
        NotAuthorized
            If the brokers refuse the group or a topic.
        """
        with translated(self._where):
            polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        self._check_reached()
        return [record for records in polled.values() for record in records]

    def commit(self, positions: Mapping[Position, int]) -> None:
        """Remember the next offsets with the group.

        If the group has given the partitions to somebody else meanwhile, nothing is remembered: the new owner reads the
        records again.

        Raises
        ------
        BrokerUnavailable
            If the group's coordinator cannot be reached; nothing is known to be remembered.
        """
        from kafka import OffsetAndMetadata, TopicPartition, errors

        offsets = {TopicPartition(*position): OffsetAndMetadata(offset) for position, offset in positions.items()}
        with translated(self._where):
            try:
                self._consumer.commit(offsets, timeout_ms=int(self._session_timeout_s * 1000))
            except (
                errors.CommitFailedError,
                errors.IllegalGenerationError,
                errors.UnknownMemberIdError,
                errors.RebalanceInProgressError,
            ) as error:
                log.warning("not committed, the group has moved on; the records are read again: %s", error)

    def pause(self) -> None:
        """Give nothing from now on, also of partitions assigned later, and stay in the group."""
        self._is_paused = True
        self._consumer.pause(*self._consumer.assignment())

    def resume(self) -> None:
        """Give records again."""
        self._is_paused = False
        self._consumer.resume(*self._consumer.assignment())

    def close(self) -> None:
        """Leave the group; twice is fine."""
        if not self._is_closed:
            self._is_closed = True
            self._consumer.close(autocommit=False, timeout_ms=_CLOSE_TIMEOUT_MS)

    @property
    def assignment(self) -> frozenset[Position]:
        """The partitions that this member owns."""
        return frozenset((tp.topic, tp.partition) for tp in self._consumer.assignment())

    def lag(self) -> Mapping[Position, int]:
        """Return how many records of each owned partition are not read yet, as far as the last answers told."""
        lags = {}
        for partition in self._consumer.assignment():
            end = self._consumer.highwater(partition)
            position = self._subscription_position(partition)
            if end is not None and position is not None:
                lags[partition.topic, partition.partition] = max(0, end - position)
        return lags

    def _check_reached(self) -> None:
        """Raise if the outage lasts too long: kafka-python itself would be silent for ever."""
        now = time.monotonic()
        if self._consumer._coordinator.coordinator() is not None:
            self._reached_at = now
        elif now - self._reached_at > self._session_timeout_s:
            raise BrokerUnavailable(
                f"no answer from the group's coordinator at {self._where} for {self._session_timeout_s:g} s; "
                "check the brokers"
            )

    def _subscription_position(self, partition: TopicPartition) -> int | None:
        """Return the next offset to read without asking a broker, unlike ``KafkaConsumer.position``."""
        position = self._consumer._subscription.assignment[partition].position
        return None if position is None else int(position.offset)

    def _note_assigned(self, partitions: Iterable[TopicPartition]) -> None:
        if self._is_paused:
            self._consumer.pause(*partitions)
        self._note_rebalance()

    def _note_rebalance(self) -> None:
        if self._on_rebalance is not None and not self._is_closed:
            self._on_rebalance()


def _listener(source: KafkaSource) -> Any:
    """Return kafka-python's listener for a source; made here so that importing this module needs no Kafka client."""
    from kafka import ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
        def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
            source._note_rebalance()

        def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
            source._note_assigned(assigned)

    return Listener()
