"""The simulated broker does as Kafka does where the promise depends on it."""

from __future__ import annotations

import pytest
from simulated_kafka import (
    NO_GENERATION,
    Broker,
    FencedInstance,
    FencedWriter,
    Group,
    Membership,
    Message,
    MovedOn,
    Writer,
)


class Notes:
    """Takes down what it witnesses."""

    def __init__(self) -> None:
        self.published_offsets: list[int] = []
        self.committed_offsets: list[int] = []

    def published(self, message: Message) -> None:
        self.published_offsets.append(message.offset)

    def committed(self, partition: int, offset: int) -> None:
        self.committed_offsets.append(offset)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def broker(notes: Notes) -> Broker:
    return Broker(2, notes)


def answer(offset: int) -> Message:
    return Message("scores", 0, 0, offset, b"")


def member(group: Group, instance_id: str | None = None) -> Membership:
    """Join and take part in the rebalance, alone or as the last."""
    name = group.join(instance_id)
    group.sync(name)
    return Membership(name, group.generation, instance_id)


def test_what_is_written_in_a_transaction_counts_with_its_offsets_or_not_at_all(broker: Broker, notes: Notes) -> None:
    who = member(broker.group)
    for offset, is_commit in ((3, False), (4, True)):
        writer = broker.connect("id")
        broker.land(writer, answer(offset))
        broker.add_offsets(writer, {0: offset + 1}, who)
        assert broker.is_pending(0)
        broker.decide(writer, is_commit=is_commit)
        broker.complete("id")
        assert not broker.is_pending(0)
    assert (notes.published_offsets, notes.committed_offsets) == ([4], [5])


def test_a_new_writer_takes_back_what_the_old_one_left_open_and_fences_it(broker: Broker, notes: Notes) -> None:
    old = broker.connect("id")
    broker.land(old, answer(0))
    broker.connect("id")
    assert not broker.unsettled
    with pytest.raises(FencedWriter):
        broker.land(old, answer(1))
    with pytest.raises(FencedWriter):
        broker.decide(old, is_commit=True)
    assert notes.published_offsets == []


def test_a_new_writer_completes_what_was_decided(broker: Broker) -> None:
    old = broker.connect("id")
    broker.add_offsets(old, {0: 7}, member(broker.group))
    broker.decide(old, is_commit=True)
    assert broker.committed == {}
    broker.connect("id")
    assert broker.committed == {0: 7}


def test_a_transaction_that_timed_out_cannot_be_committed(broker: Broker) -> None:
    writer = broker.connect("id")
    broker.land(writer, answer(0))
    broker.time_out("id")
    with pytest.raises(FencedWriter):
        broker.decide(writer, is_commit=True)


def test_without_transactions_what_lands_counts_at_once(broker: Broker, notes: Notes) -> None:
    broker.land(Writer(), answer(0))
    assert notes.published_offsets == [0]


def test_a_member_that_is_out_or_of_an_old_generation_commits_nothing(broker: Broker) -> None:
    first = member(broker.group)
    second = broker.group.join(None)
    broker.commit({0: 1}, first)  # until all have joined the old generation goes on
    broker.group.sync(first.member)
    broker.group.sync(second)
    with pytest.raises(MovedOn):
        broker.commit({0: 2}, first)
    broker.group.leave(second)
    with pytest.raises(MovedOn):
        broker.commit({0: 2}, Membership(second, broker.group.generation, None))
    assert broker.committed == {0: 1}


def test_a_partition_is_given_away_only_when_its_owner_has_let_go_or_is_out(broker: Broker) -> None:
    group = broker.group
    first = group.join(None)
    assert group.sync(first) == {0, 1}
    second = group.join(None)
    group.sync(first)
    assert group.sync(second) == frozenset()
    assert group.sync(first) == {0}
    assert group.sync(second) == {1}
    group.leave(first)
    assert group.sync(second) == {0, 1}


def test_a_member_with_an_instance_id_is_replaced_without_a_rebalance_and_fenced(broker: Broker) -> None:
    group = broker.group
    old = member(group, "instance")
    new = group.join("instance")
    assert not group.is_rebalancing
    assert group.sync(new) == {0, 1}
    with pytest.raises(FencedInstance):
        broker.commit({0: 1}, old)


def test_nobody_commits_within_a_transaction_only(broker: Broker) -> None:
    nobody = Membership("", NO_GENERATION, None)
    member(broker.group)
    with pytest.raises(MovedOn):
        broker.commit({0: 1}, nobody)
    broker.add_offsets(broker.connect("id"), {0: 1}, nobody)
    assert broker.is_pending(0)
