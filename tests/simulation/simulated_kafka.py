"""Kafka as far as the promise of delivery depends on it: logs, transactions, a consumer group. No time, no chance.

What happens is decided by whoever calls. Every effect is told to a `Witness` at the moment it happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from consumers.records import StoredRecord

NO_GENERATION = -1


class Refused(Exception):
    """The broker says no."""


class FencedWriter(Refused):
    """Another writer has the transactional id, or the transaction is over."""


class FencedInstance(Refused):
    """Another member has the instance id."""


class MovedOn(Refused):
    """The group does not know the member, or is at another generation."""


class State(Enum):
    OPEN = "open"
    DECIDED = "decided"
    """To be committed, come what may; its markers are on their way."""
    COMMITTED = "committed"
    ABORTED = "aborted"


@dataclass(eq=False)
class Transaction:
    transactional_id: str
    state: State = State.OPEN
    messages: list[Message] = field(default_factory=list)
    offsets: dict[int, int] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Message:
    """What is written to an output topic: the answer to one input record."""

    topic: str
    to_partition: int
    partition: int
    offset: int
    body: bytes
    version: int | None = None
    is_flagged: bool = False
    transaction: Transaction | None = None


@dataclass(eq=False)
class Writer:
    """A producer, as the broker knows it. Without a transactional id its writes count at once."""

    transactional_id: str | None = None
    epoch: int = 0
    transaction: Transaction | None = None


class Membership(NamedTuple):
    """What a member says of itself with a commit."""

    member: str
    generation: int
    instance_id: str | None


class Witness(Protocol):
    def published(self, message: Message) -> None:
        """A message counts from now on, for ever."""

    def committed(self, partition: int, offset: int) -> None:
        """The group goes on at `offset`."""


@dataclass
class _Member:
    instance_id: str | None
    generation: int = NO_GENERATION
    owned: set[int] = field(default_factory=set)


class Group:
    """The classic protocol with cooperative assignment: when one joins or leaves, all join anew, in their polls."""

    def __init__(self, n_partitions: int) -> None:
        self.members: dict[str, _Member] = {}
        self.generation = 0
        self.is_rebalancing = False
        self._n_partitions = n_partitions
        self._joined: set[str] = set()
        self._fenced: set[str] = set()
        self._n_ids = 0

    def join(self, instance_id: str | None) -> str:
        """Return the id of a new member; with an instance id that is known it takes the old one's place at once."""
        self._n_ids += 1
        name = f"member-{self._n_ids}"
        known = {member.instance_id: other for other, member in self.members.items()}
        old = None if instance_id is None else known.get(instance_id)
        if old is None:
            self.members[name] = _Member(instance_id)
            self._rebalance()
        else:
            self.members[name] = self.members.pop(old)
            self._fenced.add(old)
            self._joined.discard(old)
        return name

    def leave(self, name: str) -> None:
        """Forget a member, which may not know it."""
        if self.members.pop(name, None) is not None:
            self._joined.discard(name)
            self._rebalance()

    def latecomers(self) -> list[str]:
        """Return who keeps a rebalance waiting."""
        return [name for name in self.members if self.is_rebalancing and name not in self._joined]

    def sync(self, name: str) -> frozenset[int]:
        """What a poll does: take part in a rebalance, give up and take partitions; return those owned now."""
        self._check_known(name)
        member = self.members[name]
        if self.is_rebalancing:
            self._joined.add(name)
            if self._joined >= set(self.members):
                self.is_rebalancing = False
                self.generation += 1
        if not self.is_rebalancing:
            member.generation = self.generation
            target = self._target(name)
            taken = {p for other in self.members.values() if other is not member for p in other.owned}
            member.owned = (member.owned & target) | (target - taken)
        return frozenset(member.owned)

    def check(self, who: Membership, *, is_transactional: bool) -> None:
        """Raise unless the member may commit. Nobody in particular may within a transaction, as with Kafka."""
        if who.generation == NO_GENERATION and not who.member and who.instance_id is None:
            if is_transactional or not self.members:
                return
            raise MovedOn("only members commit")
        self._check_known(who.member)
        if who.generation != self.generation:
            raise MovedOn(f"generation is {self.generation}, not {who.generation}")

    def _check_known(self, name: str) -> None:
        if name in self._fenced:
            raise FencedInstance(name)
        if name not in self.members:
            raise MovedOn(f"{name} is no member")

    def _rebalance(self) -> None:
        self.is_rebalancing = bool(self.members)
        self._joined.clear()

    def _target(self, name: str) -> set[int]:
        place = sorted(self.members, key=lambda n: self.members[n].instance_id or n).index(name)
        return set(range(place, self._n_partitions, len(self.members)))


class Broker:
    """Input partitions, output logs, transactions and what a group has committed."""

    def __init__(self, n_partitions: int, witness: Witness) -> None:
        self.inputs: list[list[StoredRecord]] = [[] for _ in range(n_partitions)]
        self.outputs: dict[tuple[str, int], list[Message]] = {}
        self.committed: dict[int, int] = {}
        self.group = Group(n_partitions)
        self.unsettled: dict[str, Transaction] = {}
        self._epochs: dict[str, int] = {}
        self._witness = witness

    def end(self, partition: int) -> int:
        """Return the offset after the last record."""
        log = self.inputs[partition]
        return log[-1].offset + 1 if log else 0

    def is_pending(self, partition: int) -> bool:
        """Whether a transaction that is not settled holds an offset of the partition."""
        return any(partition in transaction.offsets for transaction in self.unsettled.values())

    # --- writing ----------------------------------------------------------------------------------------------------

    def connect(self, transactional_id: str | None) -> Writer:
        """Let a writer in; what an older one with the same id left open is settled first."""
        if transactional_id is None:
            return Writer()
        self._epochs[transactional_id] = self._epochs.get(transactional_id, 0) + 1
        self._abort(transactional_id)
        self.complete(transactional_id)
        return Writer(transactional_id, self._epochs[transactional_id])

    def land(self, writer: Writer, message: Message) -> None:
        """Append a message."""
        if writer.transactional_id is not None:
            message.transaction = self._transaction(writer)
            message.transaction.messages.append(message)
        self.outputs.setdefault((message.topic, message.to_partition), []).append(message)
        if message.transaction is None:
            self._witness.published(message)

    def add_offsets(self, writer: Writer, offsets: Mapping[int, int], who: Membership) -> None:
        """Put offsets into the transaction. The member is looked at now, and never again."""
        transaction = self._transaction(writer)
        self.group.check(who, is_transactional=True)
        transaction.offsets.update(offsets)

    def decide(self, writer: Writer, *, is_commit: bool) -> None:
        """End the transaction; its markers follow with :meth:`complete`."""
        transaction = writer.transaction
        if transaction is None or not self._is_current(writer) or transaction.state is not State.OPEN:
            raise FencedWriter(f"no open transaction of {writer.transactional_id} at epoch {writer.epoch}")
        if not is_commit:
            self._abort(transaction.transactional_id)
            return
        transaction.state = State.DECIDED
        for message in transaction.messages:
            self._witness.published(message)

    def complete(self, transactional_id: str) -> None:
        """Write the markers of a transaction that is decided."""
        transaction = self.unsettled.get(transactional_id)
        if transaction is not None and transaction.state is State.DECIDED:
            transaction.state = State.COMMITTED
            del self.unsettled[transactional_id]
            self._commit(transaction.offsets)

    def time_out(self, transactional_id: str) -> None:
        """Take back a transaction that is open for too long, and fence its writer."""
        if self.unsettled[transactional_id].state is State.OPEN:
            self._epochs[transactional_id] += 1
            self._abort(transactional_id)

    # --- progress ---------------------------------------------------------------------------------------------------

    def commit(self, offsets: Mapping[int, int], who: Membership) -> None:
        """Remember offsets for a member."""
        self.group.check(who, is_transactional=False)
        self._commit(offsets)

    # ----------------------------------------------------------------------------------------------------------------

    def _commit(self, offsets: Mapping[int, int]) -> None:
        for partition, offset in offsets.items():
            self._witness.committed(partition, offset)
            self.committed[partition] = offset

    def _is_current(self, writer: Writer) -> bool:
        return writer.transactional_id is not None and self._epochs[writer.transactional_id] == writer.epoch

    def _transaction(self, writer: Writer) -> Transaction:
        """Return the writer's open transaction, begun if there is none."""
        name = writer.transactional_id
        if name is None or not self._is_current(writer):
            raise FencedWriter(f"{name}: epoch {writer.epoch} is over")
        if writer.transaction is None:
            self.complete(name)
            writer.transaction = self.unsettled[name] = Transaction(name)
        if writer.transaction.state is not State.OPEN:
            raise FencedWriter(f"{name}: the transaction is {writer.transaction.state.value}")
        return writer.transaction

    def _abort(self, transactional_id: str) -> None:
        transaction = self.unsettled.get(transactional_id)
        if transaction is not None and transaction.state is State.OPEN:
            transaction.state = State.ABORTED
            del self.unsettled[transactional_id]


def records_from(log: Iterable[StoredRecord], offset: int, n: int) -> list[StoredRecord]:
    """Return up to `n` records of a log from an offset on."""
    found: list[StoredRecord] = []
    for record in log:
        if record.offset >= offset and len(found) < n:
            found.append(record)
    return found
