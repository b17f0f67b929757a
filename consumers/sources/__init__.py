"""Where records come from, one after the other, with a place that can be committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from consumers.records import Position, RawRecord


class Source(Protocol):
    """A reader of partitions that remembers how far it came."""

    def poll(self, timeout_s: float, max_records: int | None = None) -> Sequence[RawRecord]:
        """Return the next records, maybe none, in order within a partition; never block longer.

        Partitions come and go in here and nowhere else. Whoever has a batch in the works does not call it.
        """

    def stay(self) -> None:
        """Tell that this reader is well although it does not poll: a batch takes its time."""

    def commit(self, positions: Mapping[Position, int]) -> None:
        """Begin to remember the next offset to read of each partition.

        It is remembered, durably and for this reader alone, when the next call of this, or of `close`, has returned. A
        partition is not given to another reader before.
        """

    def pause(self) -> None:
        """Give nothing from now on, also of partitions assigned later, and stay in the group."""

    def resume(self) -> None:
        """Give records again."""

    def close(self) -> None:
        """Leave; twice is fine."""

    @property
    def assignment(self) -> frozenset[Position]:
        """The partitions that this reader owns."""

    def lag(self) -> Mapping[Position, int]:
        """Return how many records of each owned partition are not read yet, as far as is known without asking."""
