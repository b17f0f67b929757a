"""What reading and writing ask of a Kafka client library, whichever it is.

``kafka-python`` is plain Python and is what everything else here uses, too. ``confluent`` is librdkafka, a C library
(extra ``confluent``), and several times as fast. :mod:`consumers.sources.kafka` and :mod:`consumers.sinks.kafka` decide
what happens; the members and writers here only do it, and raise :class:`consumers.errors.ConsumersError` or what is
below.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from consumers.errors import LibraryMissing
from consumers.polled import Polled
from consumers.records import Position


class ClientName(StrEnum):
    """Client libraries, by the name of their package."""

    KAFKA_PYTHON = "kafka-python"
    CONFLUENT = "confluent"


class NothingCommitted(Exception):
    """The group has committed no offset of some partitions, so it is not known where to begin."""

    def __init__(self, partitions: Collection[Position]) -> None:
        super().__init__(partitions)
        self.partitions = tuple(partitions)


class OutOfRange(Exception):
    """The log does not hold the next offset of some partitions."""

    def __init__(self, offsets: Mapping[Position, int]) -> None:
        super().__init__(offsets)
        self.offsets = offsets


class MovedOn(Exception):
    """The group is rebalancing, or goes on without this member: nothing was committed."""


class Failure(StrEnum):
    """Why something is not written, by who must act."""

    RIGHTS = "rights"
    TAKEN_OVER = "taken over"
    TOO_LARGE = "too large"
    OTHER = "other"


class WriteFailed(Exception):
    """Something was not written, or it is not known whether it was."""

    def __init__(self, cause: object, failure: Failure = Failure.OTHER) -> None:
        super().__init__(str(cause))
        self.failure = failure


class Membership(NamedTuple):
    """How to join a group; see :class:`consumers.sources.kafka.KafkaSource`."""

    group_id: str
    instance_id: str | None
    isolation_level: str
    max_batch: int
    session_timeout_s: float
    max_poll_interval_s: float


class Events(NamedTuple):
    """Whom a member tells, from inside a poll, that partitions came or went."""

    assigned: Callable[[frozenset[Position]], None]
    gone: Callable[[frozenset[Position]], None]


class PendingCommit(Protocol):
    """A commit that was sent."""

    def wait(self, timeout_s: float) -> bool:
        """Return whether the group has answered, as soon as it has, or when time is over."""

    def result(self, timeout: float | None = None) -> None:
        """Return when the offsets are committed; raise `MovedOn` if the group does not take them.

        Raises `BrokerUnavailable` or TimeoutError if it is not known whether they are.
        """


class Member(Protocol):
    """A member of a consumer group. It commits nothing by itself, and joins in its first polls."""

    def poll(self, timeout_s: float, max_records: int) -> Polled:
        """Return the next records, maybe none, in order within a partition.

        Raises
        ------
        NothingCommitted, OutOfRange
            No record is lost by it; such a partition gives none until it is sought.
        """

    def stay(self) -> None:
        """Count as a poll, and do nothing else."""

    def partitions(self, topics: Sequence[str]) -> frozenset[Position]:
        """Return all partitions of topics; raise `TopicMissing` if one does not exist."""

    def begins(self, partitions: Collection[Position]) -> dict[Position, int]:
        """Ask for the first offset of each partition."""

    def ends(self, partitions: Collection[Position]) -> dict[Position, int]:
        """Ask for the offset behind the last record of each partition."""

    def seek(self, partition: Position, offset: int) -> None:
        """Go on at this offset."""

    def send_commit(self, offsets: Mapping[Position, int]) -> PendingCommit:
        """Begin to commit these; one after the other, and before a later poll gives a partition away."""

    def pause(self, partitions: Collection[Position]) -> None:
        """Give nothing of these."""

    def resume(self, partitions: Collection[Position]) -> None:
        """Give records of these again."""

    def next_offset(self, partition: Position) -> int | None:
        """Return what is read next of an owned partition, without asking; None: not known yet."""

    def known_end(self, partition: Position) -> int | None:
        """Return the end of an owned partition as of the last answer; None: not known yet."""

    def close(self) -> None:
        """Leave the group, unless this member has an instance id."""

    @property
    def assignment(self) -> frozenset[Position]:
        """The partitions that this member owns."""

    @property
    def is_rebalancing(self) -> bool:
        """Whether the group is, as far as this member knows."""

    @property
    def reaches_coordinator(self) -> bool:
        """Whether the group's coordinator is known and connected."""

    @property
    def metadata(self) -> Any:
        """What a writer of the same library takes for this member in a transaction; None if the group put it out."""


class Writer(Protocol):
    """An idempotent producer that waits for all in-sync replicas. Every method raises `WriteFailed`."""

    def send(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Sequence[Any]) -> None:
        """Take a message; may wait for room."""

    def flush(self, timeout_s: float) -> bool:
        """Return True as soon as every message since the last one is confirmed, False when time is over."""

    def begin(self) -> None:
        """Open a transaction."""

    def send_offsets(self, offsets: Mapping[Position, int], metadata: Any, timeout_s: float) -> bool:
        """Add offsets of a member to the open transaction; return False when time is over, to be called again."""

    def commit(self, timeout_s: float) -> bool:
        """Commit the open transaction; return False when time is over, to be called again."""

    def close(self, let_go_s: float) -> None:
        """Drop what is not confirmed and, within `let_go_s`, take back an open transaction."""


def join(
    client: ClientName, connection: Mapping[str, Any], topics: Sequence[str], membership: Membership, events: Events
) -> Member:
    """Return a member that has reached a broker, and subscribed.

    Parameters
    ----------
    connection
        kafka-python's settings of a connection: ``bootstrap_servers``, ``security_protocol``, …

    Raises
    ------
    LibraryMissing
        If the client library is not installed.
    BrokerUnavailable, NotAuthorized
        If no broker answers, or it refuses.
    """
    if client == ClientName.KAFKA_PYTHON:
        from consumers.clients.kafka_python import KafkaPythonMember

        return KafkaPythonMember(connection, topics, membership, events)
    require(client)
    from consumers.clients.confluent import ConfluentMember

    return ConfluentMember(connection, topics, membership, events)


def open_writer(
    client: ClientName,
    connection: Mapping[str, Any],
    *,
    max_message_size: int,
    timeout_s: float,
    transactional_id: str | None,
) -> Writer:
    """Return a writer that has reached a broker; with a `transactional_id` it has put out others of that name.

    Raises as :func:`join` does, and `WriteFailed` if another is already writing in its place.
    """
    if client == ClientName.KAFKA_PYTHON:
        from consumers.clients.kafka_python import KafkaPythonWriter

        return KafkaPythonWriter(
            connection, max_message_size=max_message_size, timeout_s=timeout_s, transactional_id=transactional_id
        )
    require(client)
    from consumers.clients.confluent import ConfluentWriter

    return ConfluentWriter(
        connection, max_message_size=max_message_size, timeout_s=timeout_s, transactional_id=transactional_id
    )


def require(client: ClientName) -> None:
    """Raise `LibraryMissing` unless a client library is installed."""
    if client == ClientName.KAFKA_PYTHON:
        return
    try:
        import confluent_kafka  # noqa: F401
    except ImportError as error:
        raise LibraryMissing(
            "kafka.client: is confluent, but confluent-kafka is not installed; pip install 'srr-stream[confluent]', "
            "or set kafka-python"
        ) from error
