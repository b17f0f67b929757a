"""How verdicts and the progress behind them become durable together: the two promises.

``at_least_once``: verdicts first, offsets behind them. A crash in between gives doubles; those by the
same model version are equal in every byte.
``exactly_once``: both in one transaction. Nobody who reads what is committed sees a half of it, or a double.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from consumers.records import BadRecord, Position, Verdicts
from consumers.sinks import Sink
from consumers.sources import Source


class Delivery(Protocol):
    """Publish a batch, then commit how far it reaches. After an error neither is known: connect anew and read again."""

    def publish(self, verdicts: Verdicts, bad: Sequence[BadRecord], while_waiting: Callable[[], None]) -> None:
        """Return when the verdicts and dead letters of a batch are with the brokers."""

    def commit(self, positions: Mapping[Position, int], while_waiting: Callable[[], None]) -> None:
        """Return when the next offsets to read are remembered, or are going to be before those of the next batch."""


class AtLeastOnce:
    """Verdicts are durable before the offsets behind them are committed."""

    def __init__(self, source: Source, sink: Sink) -> None:
        self._source = source
        self._sink = sink

    def publish(self, verdicts: Verdicts, bad: Sequence[BadRecord], while_waiting: Callable[[], None]) -> None:
        """Return when the batch is durable."""
        self._sink.write(verdicts)
        self._sink.write_bad(bad)
        self._sink.flush(while_waiting)

    def commit(self, positions: Mapping[Position, int], while_waiting: Callable[[], None]) -> None:
        """Commit with the group; nobody waits for its answer but the commit after the next batch."""
        self._source.commit(positions)


class GroupSource(Source, Protocol):
    """A source that can say which member of which group it is."""

    @property
    def membership(self) -> Any:
        """What the sink of the same system takes for it."""


class TransactionalSink(Sink, Protocol):
    """A sink whose writes since `begin` count all or not at all, together with offsets."""

    def begin(self) -> None:
        """Open a transaction."""

    def commit(self, positions: Mapping[Position, int], membership: Any, while_waiting: Callable[[], None]) -> None:
        """Close it, with offsets of a member in it; raise if that is not known to have happened."""


class ExactlyOnce:
    """Verdicts and offsets are one transaction."""

    def __init__(self, source: GroupSource, sink: TransactionalSink) -> None:
        self._source = source
        self._sink = sink

    def publish(self, verdicts: Verdicts, bad: Sequence[BadRecord], while_waiting: Callable[[], None]) -> None:
        """Return when the batch is with the brokers, in an open transaction."""
        self._sink.begin()
        self._sink.write(verdicts)
        self._sink.write_bad(bad)
        self._sink.flush(while_waiting)

    def commit(self, positions: Mapping[Position, int], while_waiting: Callable[[], None]) -> None:
        """Commit the transaction, with the offsets in it."""
        self._sink.commit(positions, self._source.membership, while_waiting)
