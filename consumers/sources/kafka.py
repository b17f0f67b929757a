"""Records out of Kafka, as a member of a consumer group."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from consumers.access import check_access
from consumers.clients import (
    ClientName,
    Events,
    Membership,
    MovedOn,
    NothingCommitted,
    OutOfRange,
    PendingCommit,
    join,
)
from consumers.errors import BrokerUnavailable, MembershipLost, OffsetLost
from consumers.kafka_client import servers
from consumers.records import Position, RawRecord
from consumers.watchdog import ProgressWatchdog

log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 3.0


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
    client
        The library that reads.

    Raises
    ------
    LibraryMissing
        If the client library is not installed.
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
        client: ClientName = ClientName.KAFKA_PYTHON,
    ) -> None:
        self._where = servers(connection)
        self._start = start
        self._lost_offset = lost_offset
        self._max_batch = max_batch
        self._session_timeout_s = session_timeout_s
        self._on_rebalance = on_rebalance
        self._on_skipped = on_skipped
        self._watchdog = ProgressWatchdog(stall_timeout_s)
        self._owed: dict[Position, int] = {}
        """What a rebalance kept from being committed."""
        self._sent: tuple[dict[Position, int], PendingCommit] | None = None
        """What was committed last, of partitions that stayed here, until it is known what came of it."""
        self._begun_at: float | None = None
        """When partitions were begun, until it is known that where is remembered."""
        self._is_paused = False
        self._is_closed = False
        check_access(connection, reads=topics, group_id=group_id, where=self._where)
        membership = Membership(
            group_id,
            instance_id=instance_id,
            isolation_level=isolation_level,
            max_batch=max_batch,
            session_timeout_s=session_timeout_s,
            max_poll_interval_s=max(max_poll_interval_s, session_timeout_s),
        )
        self._member = join(client, connection, topics, membership, Events(self._note_assigned, self._note_gone))
        try:
            self._known = self._member.partitions(topics)
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
        if self._begun_at is not None and not self._is_begun(self._begun_at, timeout_s):
            return []
        try:
            polled = self._member.poll(timeout_s, max_records or self._max_batch)
        except NothingCommitted as error:
            self._begin(error.partitions)
            return []
        except OutOfRange as error:
            self._skip(error.offsets)
            return []
        except MembershipLost as error:
            raise MembershipLost(
                f"{self._where}: another member of the group has this instance id: {error}; "
                "give each scorer its own input.instance_id"
            ) from error
        if self._sent is not None and self._sent[1].wait(0.0):
            self.settle()
        self._pay_owed()
        self._check_reached()
        self._check_progress()
        return polled or []

    def stay(self) -> None:
        """Tell the group that this member is well although it does not poll: a batch takes its time."""
        self._member.stay()

    def commit(self, positions: Mapping[Position, int]) -> None:
        """Begin to remember the next offsets with the group; see :class:`consumers.sources.Source`.

        If the group has given the partitions to somebody else meanwhile, nothing is remembered: the new owner reads the
        records again.

        Raises
        ------
        BrokerUnavailable
            If it is not known whether the call before was remembered: the group's coordinator cannot be reached.
        """
        self.settle()
        for partition in positions:
            self._owed.pop(partition, None)
        self._sent = dict(positions), self._member.send_commit(positions)

    def settle(self, timeout_s: float | None = None) -> None:
        """Return when it is known what came of the last commit; wait for the session timeout, or so long.

        Raises
        ------
        BrokerUnavailable
            If it is not known then.
        """
        if self._sent is None:
            return
        (offsets, pending), self._sent = self._sent, None
        try:
            pending.result(self._session_timeout_s if timeout_s is None else timeout_s)
        except MovedOn as error:
            log.warning("not committed, the group has moved on; what is not committed is read again: %s", error)
            self._owed |= offsets
        except TimeoutError as error:
            raise BrokerUnavailable(
                f"no answer from {self._where} to a commit for {self._session_timeout_s:g} s; check the brokers"
            ) from error

    @property
    def membership(self) -> Any:
        """What names this member and its generation to the group, for a commit within a transaction.

        Raises
        ------
        MembershipLost
            If the group has put this member out since its last poll.
        """
        known = self._member.metadata
        # A transaction takes offsets of nobody unchecked, and would commit them over those of a partition's new owner.
        if known is None:
            raise MembershipLost(
                f"{self._where}: the group has put this member out, it was silent for too long; nothing of the batch "
                "counts, it is scored again. If this repeats, raise input.session_timeout"
            )
        return known

    def pause(self) -> None:
        """Give nothing from now on, also of partitions assigned later, and stay in the group."""
        self._is_paused = True
        self._member.pause(self._member.assignment)

    def resume(self) -> None:
        """Give records again."""
        self._is_paused = False
        self._member.resume(self._member.assignment)

    def close(self) -> None:
        """Leave the group, unless this member has an instance id, by which it comes back; twice is fine."""
        if not self._is_closed:
            self._is_closed = True
            with suppress(BrokerUnavailable):
                self.settle(_CLOSE_TIMEOUT_S)
            self._member.close()

    @property
    def assignment(self) -> frozenset[Position]:
        """The partitions that this member owns."""
        return self._member.assignment

    def lag(self) -> Mapping[Position, int]:
        """Return how many records of each owned partition are not read yet, as far as the last answers told."""
        lags = {}
        for partition in self._member.assignment:
            end, position = self._member.known_end(partition), self._member.next_offset(partition)
            if end is not None and position is not None:
                lags[partition] = max(0, end - position)
        return lags

    # --- offsets ----------------------------------------------------------------------------------------------------

    def _begin(self, partitions: Collection[Position]) -> None:
        """Begin partitions of which the group has committed nothing, and commit where."""
        new = [partition for partition in partitions if partition not in self._known]
        old = [partition for partition in partitions if partition in self._known]
        found = self._member.begins(new)
        found |= self._member.begins(old) if self._start == "earliest" else self._member.ends(old)
        for partition, offset in found.items():
            self._member.seek(partition, offset)
        self.commit(found)
        self._begun_at = time.monotonic()

    def _is_begun(self, since: float, timeout_s: float) -> bool:
        """Return whether it is known that the beginnings are remembered; no record is given before that.

        It takes long where librdkafka joins anew already: the broker then answers when all other members have.
        """
        is_late = time.monotonic() > since + self._session_timeout_s
        if self._sent is not None and not self._sent[1].wait(timeout_s) and not is_late:
            return False
        self._begun_at = None
        self.settle(0.0)
        return True

    def _skip(self, lost: Mapping[Position, int]) -> None:
        """Go on where there is something to read."""
        begins, ends = self._member.begins(lost), self._member.ends(lost)
        for (topic, partition), offset in lost.items():
            begin, end = begins[topic, partition], ends[topic, partition]
            where = f"{self._where}: {topic}-{partition}"
            there = f"the log holds offsets {begin} to before {end}, offset {offset} is next"
            if self._lost_offset == "error":
                raise OffsetLost(
                    f"{where}: {there}; reset the group's offset, or allow input.lost_offset: earliest or latest"
                )
            goal = begin if self._lost_offset == "earliest" else end
            place = {"topic": topic, "partition": partition, "offset": offset}
            log.error(
                "%s: %s; going on at %d (input.lost_offset: %s)", where, there, goal, self._lost_offset, extra=place
            )
            self._member.seek((topic, partition), goal)
            if self._on_skipped is not None:
                self._on_skipped((topic, partition), max(0, goal - offset))

    def _pay_owed(self) -> None:
        """Commit what a rebalance kept from being committed, of partitions that stayed here."""
        if self._owed and not self._member.is_rebalancing:
            owed, self._owed = self._owed, {}
            self.commit(owed)
            self.settle()

    # --- is all well? -----------------------------------------------------------------------------------------------

    def _check_reached(self) -> None:
        """Raise if the outage lasts too long: a client itself would be silent for ever."""
        now = time.monotonic()
        if self._member.reaches_coordinator:
            self._reached_at = now
        elif now - self._reached_at > self._session_timeout_s:
            raise BrokerUnavailable(
                f"no answer from the group's coordinator at {self._where} for {self._session_timeout_s:g} s; "
                "check the brokers"
            )

    def _check_progress(self) -> None:
        """Raise if a partition gives nothing although records wait in it."""
        if self._is_paused:
            self._watchdog.reset()
            return
        self._watchdog.update({partition: self._member.next_offset(partition) for partition in self.assignment})
        if not self._watchdog.doubts:
            return
        try:
            ends = self._member.ends(self._watchdog.doubts)
        except BrokerUnavailable:  # an outage: the next turn asks again
            return
        stalled = self._watchdog.judge(ends)
        if stalled:
            raise BrokerUnavailable(f"{self._where}: {stalled}; the connection is made anew")

    def _note_assigned(self, partitions: frozenset[Position]) -> None:
        if self._is_paused:
            self._member.pause(partitions)
        self._note_rebalance()

    def _note_gone(self, partitions: frozenset[Position]) -> None:
        for partition in partitions:
            # Should it come back, another may have committed more meanwhile.
            self._owed.pop(partition, None)
            if self._sent is not None:
                self._sent[0].pop(partition, None)
        self._note_rebalance()

    def _note_rebalance(self) -> None:
        if self._on_rebalance is not None and not self._is_closed:
            self._on_rebalance()
