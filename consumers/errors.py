"""What can go wrong with events, grouped by who must act.

    ConsumersError
    ├── BrokerUnavailable   operator: no broker answers; it may come back, so it is tried again
    ├── MembershipLost      nobody, or the operator if it repeats: another member has taken over; nothing is lost
    ├── OffsetLost          operator: the log no longer holds what is to be read next
    ├── TopicMissing        operator: a topic does not exist, or is hidden; it is never created by a reader
    ├── NotAuthorized       operator: wrong credentials, or rights that are missing
    ├── SinkError           operator: verdicts could not be made durable; nothing behind them may be committed
    ├── SourceError         operator: a file cannot be read
    └── LibraryMissing      operator: a library that is needed is not installed; the message names the extra

A bad record is no exception: see :class:`consumers.records.BadRecord`.
"""

from __future__ import annotations

from collections.abc import Iterable


class ConsumersError(Exception):
    """Anything this package raises on purpose."""


class BrokerUnavailable(ConsumersError):
    """No broker answers."""


class MembershipLost(ConsumersError):
    """The group goes on without this member, or another writer has its id: its open batch counts for nothing."""


class OffsetLost(ConsumersError):
    """The log no longer holds what is to be read next, and nobody said what to do then."""


class TopicMissing(ConsumersError):
    """A topic does not exist, or these credentials may not see it: a broker tells nobody which."""

    def __init__(self, topics: Iterable[str], *, where: str) -> None:
        self.topics = tuple(sorted(topics))
        super().__init__(
            f"{where}: there is no topic {', '.join(self.topics)} that these credentials may see; "
            "create it, correct the name, or grant the right to describe it"
        )


class NotAuthorized(ConsumersError):
    """The brokers refuse these credentials, or give them too few rights."""


class SinkError(ConsumersError):
    """Something written is not known to be durable."""


class SourceError(ConsumersError):
    """A file cannot be read."""


class LibraryMissing(ConsumersError):
    """A library that these records, or these settings, need is not installed."""
