"""Records out of Kafka, as a member of a consumer group."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from consumers.access import check_access
from consumers.errors import BrokerUnavailable, MembershipLost, OffsetLost
from consumers.kafka_client import existing_partitions, make_consumer, servers, translated
from consumers.polled import Polled, Run
from consumers.records import Position, RawRecord
from consumers.watchdog import ProgressWatchdog

if TYPE_CHECKING:
    from kafka import TopicPartition
    from kafka.structs import ConsumerGroupMetadata

log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_MS = 3000
_ANSWER_TIMEOUT_MS = 5000
"""For a question to a broker between two polls."""


class KafkaSource:
    """Read topics together with the other members of a group.

    Neither commits by itself nor creates topics. While paused it stays in the group: heartbeats go on.

    Parameters
    ----------
    connection
        kafka-python's settings of a connection: ``bootstrap_servers``, ``security_protocol``, …
    start
        Where a group without committed offsets begins: ``earliest`` or ``latest``. Said out loud, because each is wrong
        for somebody. Committed at once, so that a restart begins at the same place. Partitions that are added later are
        read from their beginning either way.
    lost_offset
        What to do when the log no longer holds the offset to read next: ``error``, or go on at the ``earliest`` or
        ``latest`` that there is.
    isolation_level
        ``read_committed`` leaves out what transactions of the senders took back.
    instance_id
        Name of this member, its own among all of the group (Kafka's ``group.instance.id``): it keeps its partitions
        through a restart that is shorter than the session timeout. None: a restart is a new member.
    max_batch
        At most so many records a poll.
    session_timeout_s
        The group gives this member's partitions away when it is silent for so long, and this member gives the group
        up when it is: outages that are shorter pass unseen. Joining can take half of it.
    max_poll_interval_s
        The group gives them away as well when this member neither polls nor stays for so long.
    stall_timeout_s
        A partition that gives nothing for so long although records wait is read over a new connection.
    on_rebalance
        Called when partitions come or go, from inside a poll.
    on_skipped
        Called with the position and the number of offsets that were skipped because the log no longer holds them.

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
        lost_offset: str = "earliest",
        isolation_level: str = "read_committed",
        instance_id: str | None = None,
        max_batch: int = 5000,
        session_timeout_s: float = 45.0,
        max_poll_interval_s: float = 300.0,
        stall_timeout_s: float = 60.0,
        on_rebalance: Callable[[], None] | None = None,
        on_skipped: Callable[[Position, int], None] | None = None,
    ) -> None:
        from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

        self._where = servers(connection)
        self._start = start
        self._lost_offset = lost_offset
        self._session_timeout_s = session_timeout_s
        self._on_rebalance = on_rebalance
        self._on_skipped = on_skipped
        self._watchdog = ProgressWatchdog(stall_timeout_s)
        self._owed: dict[TopicPartition, int] = {}
        """What a rebalance kept from being committed."""
        self._is_paused = False
        self._is_closed = False
        with translated(self._where):
            check_access(connection, reads=topics, group_id=group_id, where=self._where)
            self._consumer = make_consumer(
                connection,
                group_id=group_id,
                group_instance_id=instance_id,
                auto_offset_reset="none",  # what is lost is counted here, and decided on
                isolation_level=isolation_level,
                max_poll_records=max_batch,
                session_timeout_ms=int(session_timeout_s * 1000),
                heartbeat_interval_ms=int(session_timeout_s * 1000 / 10),
                max_poll_interval_ms=int(max(max_poll_interval_s, session_timeout_s) * 1000),
                partition_assignment_strategy=(CooperativeStickyAssignor,),
            )
            try:
                self._known = frozenset(existing_partitions(self._consumer, topics, where=self._where))
                self._consumer.subscribe(topics=list(topics), listener=_listener(self))
            except BaseException:
                self.close()
                raise
        self._reached_at = time.monotonic()

    def poll(self, timeout_s: float, max_records: int | None = None) -> Sequence[RawRecord]:
        """Return the next records, maybe none, in order within a partition; never block longer.

        Raises
        ------
        BrokerUnavailable
            If the group's coordinator could not be reached for the session timeout, or a partition is stalled.
        MembershipLost
            If another member has the same `instance_id`.
        OffsetLost
            If the log no longer holds the next offset and `lost_offset` is ``error``.
        NotAuthorized
            If the brokers refuse the group or a topic.
        """
        from kafka import errors

        with translated(self._where):
            try:
                polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records)
            except errors.NoOffsetForPartitionError as error:
                self._begin(error.args[0])
                return []
            except errors.OffsetOutOfRangeError as error:
                self._skip(error.args[0])
                return []
            except errors.FencedInstanceIdError as error:
                raise MembershipLost(
                    f"{self._where}: another member of the group has this instance id: {error}; "
                    "give each scorer its own input.instance_id"
                ) from error
            self._pay_owed()
            self._check_reached()
            self._check_progress()
        return _polled(polled)

    def stay(self) -> None:
        """Tell the group that this member is well although it does not poll: a batch takes its time."""
        with translated(self._where):
            self._consumer._coordinator.poll_heartbeat()

    def commit(self, positions: Mapping[Position, int]) -> None:
        """Remember the next offsets with the group.

        If the group has given the partitions to somebody else meanwhile, nothing is remembered: the new owner reads the
        records again.

        Raises
        ------
        BrokerUnavailable
            If the group's coordinator cannot be reached; nothing is known to be remembered.
        """
        from kafka import TopicPartition

        offsets = {TopicPartition(*position): offset for position, offset in positions.items()}
        for partition in offsets:
            self._owed.pop(partition, None)
        with translated(self._where):
            if not self._commit(offsets):
                self._owed |= offsets

    @property
    def membership(self) -> ConsumerGroupMetadata:
        """What names this member and its generation to the group, for a commit within a transaction.

        Raises
        ------
        MembershipLost
            If the group has put this member out since its last poll.
        """
        known = self._consumer.group_metadata()
        # A member that hears it is out forgets its name, and a transaction takes offsets of nobody unchecked: they
        # would be committed over those of the partition's new owner.
        if known.generation_id < 0:
            raise MembershipLost(
                f"{self._where}: the group has put this member out, it was silent for too long; nothing of the batch "
                "counts, it is scored again. If this repeats, raise input.session_timeout"
            )
        return known

    def pause(self) -> None:
        """Give nothing from now on, also of partitions assigned later, and stay in the group."""
        self._is_paused = True
        self._consumer.pause(*self._consumer.assignment())

    def resume(self) -> None:
        """Give records again."""
        self._is_paused = False
        self._consumer.resume(*self._consumer.assignment())

    def close(self) -> None:
        """Leave the group, unless this member has an instance id, by which it comes back; twice is fine."""
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
            position = self._position(partition)
            if end is not None and position is not None:
                lags[partition.topic, partition.partition] = max(0, end - position)
        return lags

    # --- offsets ----------------------------------------------------------------------------------------------------

    def _begin(self, partitions: Iterable[TopicPartition]) -> None:
        """Begin partitions of which the group has committed nothing, and commit where."""
        new = [partition for partition in partitions if partition not in self._known]
        old = [partition for partition in partitions if partition in self._known]
        ask = self._consumer.beginning_offsets if self._start == "earliest" else self._consumer.end_offsets
        found = ask(old, timeout_ms=_ANSWER_TIMEOUT_MS) if old else {}
        found |= self._consumer.beginning_offsets(new, timeout_ms=_ANSWER_TIMEOUT_MS) if new else {}
        for partition, offset in found.items():
            self._consumer.seek(partition, offset)
        self._commit(found)

    def _skip(self, lost: Mapping[TopicPartition, int]) -> None:
        """Go on where there is something to read."""
        begins = self._consumer.beginning_offsets(list(lost), timeout_ms=_ANSWER_TIMEOUT_MS)
        ends = self._consumer.end_offsets(list(lost), timeout_ms=_ANSWER_TIMEOUT_MS)
        for partition, offset in lost.items():
            where = f"{self._where}: {partition.topic}-{partition.partition}"
            there = f"the log holds offsets {begins[partition]} to before {ends[partition]}, offset {offset} is next"
            if self._lost_offset == "error":
                raise OffsetLost(
                    f"{where}: {there}; reset the group's offset, or allow input.lost_offset: earliest or latest"
                )
            goal = begins[partition] if self._lost_offset == "earliest" else ends[partition]
            place = {"topic": partition.topic, "partition": partition.partition, "offset": offset}
            log.error(
                "%s: %s; going on at %d (input.lost_offset: %s)", where, there, goal, self._lost_offset, extra=place
            )
            self._consumer.seek(partition, goal)
            if self._on_skipped is not None:
                self._on_skipped((partition.topic, partition.partition), max(0, goal - offset))

    def _commit(self, offsets: Mapping[TopicPartition, int]) -> bool:
        """Commit; return False if the group is rebalancing or has moved on."""
        from kafka import OffsetAndMetadata, errors

        named = {partition: OffsetAndMetadata(offset) for partition, offset in offsets.items()}
        try:
            self._consumer.commit(named, timeout_ms=int(self._session_timeout_s * 1000))
        except (
            errors.CommitFailedError,
            errors.IllegalGenerationError,
            errors.UnknownMemberIdError,
            errors.RebalanceInProgressError,
        ) as error:
            log.warning("not committed, the group has moved on; what is not committed is read again: %s", error)
            return False
        return True

    def _pay_owed(self) -> None:
        """Commit what a rebalance kept from being committed, of partitions that stayed here."""
        if self._owed and not self._consumer._coordinator.rebalance_in_progress():
            owed, self._owed = self._owed, {}
            self._commit(owed)

    def _position(self, partition: TopicPartition) -> int | None:
        """Return the next offset to read without asking a broker, unlike ``KafkaConsumer.position``."""
        position = self._consumer._subscription.assignment[partition].position
        return None if position is None else int(position.offset)

    # --- is all well? -----------------------------------------------------------------------------------------------

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

    def _check_progress(self) -> None:
        """Raise if a partition gives nothing although records wait in it."""
        from kafka.errors import KafkaTimeoutError

        if self._is_paused:
            self._watchdog.reset()
            return
        owned = {(tp.topic, tp.partition): tp for tp in self._consumer.assignment()}
        self._watchdog.update({key: self._position(tp) for key, tp in owned.items()})
        if not self._watchdog.doubts:
            return
        doubted = [owned[key] for key in self._watchdog.doubts]
        try:
            ends = self._consumer.end_offsets(doubted, timeout_ms=_ANSWER_TIMEOUT_MS)
        except KafkaTimeoutError:  # an outage: the next turn asks again
            return
        stalled = self._watchdog.judge({(tp.topic, tp.partition): end for tp, end in ends.items()})
        if stalled:
            raise BrokerUnavailable(f"{self._where}: {stalled}; the connection is made anew")

    def _note_assigned(self, partitions: Iterable[TopicPartition]) -> None:
        if self._is_paused:
            self._consumer.pause(*partitions)
        self._note_rebalance()

    def _note_gone(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            self._owed.pop(partition, None)
        self._note_rebalance()

    def _note_rebalance(self) -> None:
        if self._on_rebalance is not None and not self._is_closed:
            self._on_rebalance()


def _polled(records: Mapping[TopicPartition, Sequence[RawRecord]]) -> Polled:
    """Return records by partition as a poll."""
    runs = [Run(tp.topic, tp.partition, len(of), of[-1].offset + 1) for tp, of in records.items() if of]
    return Polled((record for of in records.values() for record in of), runs)


def _listener(source: KafkaSource) -> Any:
    """Return kafka-python's listener for a source; made here so that importing this module needs no Kafka client."""
    from kafka import ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
        def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
            source._note_gone(revoked)

        def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
            source._note_gone(lost)

        def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
            source._note_assigned(assigned)

    return Listener()
