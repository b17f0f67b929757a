"""Where verdicts and bad records go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from consumers.records import BadRecord, Verdicts


def just_wait() -> None:
    """Have nothing to do while waiting."""


class Sink(Protocol):
    """A writer whose writes are durable after :meth:`flush`."""

    def write(self, verdicts: Verdicts) -> None:
        """Take the verdicts of a batch."""

    def write_bad(self, bad: Sequence[BadRecord]) -> None:
        """Take records that could not be read, each with its reason."""

    def flush(self, while_waiting: Callable[[], None] = just_wait) -> None:
        """Return when everything taken is durable; raise `SinkError` if that is not known.

        A sink that is slow calls `while_waiting` meanwhile, about once a second.
        """

    def close(self) -> None:
        """Let go, without a promise for what was not flushed; twice is fine."""
