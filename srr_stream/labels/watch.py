"""What the scorer knows of labels: it follows their topic, and tells Prometheus what they tell."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from consumers.records import RawRecord
from consumers.tail import TopicTail
from srr_stream.labels import LabelBook, creation_of
from srr_stream.logs import get_logger
from srr_stream.metrics import ScorerMetrics

log = get_logger(__name__)

_TICK_S = 0.1


class LabelWatch:
    """Keeps a :class:`LabelBook` up to date from a topic.

    Parameters
    ----------
    connection
        kafka-python's settings of a connection.
    false_alarm_rate
        Asked for the α in use.
    """

    def __init__(
        self,
        topic: str,
        *,
        connection: Mapping[str, Any],
        metrics: ScorerMetrics,
        false_alarm_rate: Callable[[], float],
    ) -> None:
        self.book = LabelBook()
        self._topic = topic
        self._metrics = metrics
        self._false_alarm_rate = false_alarm_rate
        self._tail = TopicTail([topic], connection=connection, on_records=self._take, name="labels")
        self.note()

    def start(self, should_stop: Callable[[], bool], *, patience_s: float = 5.0) -> None:
        """Begin to follow; return when all labels there are are known, or after `patience_s` without them."""
        self._tail.start()
        until = time.monotonic() + patience_s
        while not self._tail.caught_up.wait(_TICK_S):
            if should_stop():
                return
            if time.monotonic() > until:
                why = self._tail.problem or "they take long to read"
                log.warning(
                    "scoring begins without all labels of topic %s: %s; they count as soon as they are read;"
                    " if there is no such topic: %s",
                    self._topic,
                    why,
                    creation_of(self._topic),
                )
                return
        log.info("labels of topic %s: %s", self._topic, self.book.counts())

    def stop(self) -> None:
        """Follow no more; twice is fine."""
        self._tail.stop()

    @property
    def caught_up(self) -> threading.Event:
        """Set when all labels are known that were there at the start."""
        return self._tail.caught_up

    def _take(self, records: Sequence[RawRecord]) -> None:
        self.book.update(records)
        self.note()

    def note(self) -> None:
        """Tell Prometheus what the labels tell by now, of the α in use."""
        for name, n in self.book.counts().items():
            self._metrics.labels.labels(name).set(n)
        summary = self.book.summary(self._false_alarm_rate())
        nothing = np.nan
        self._metrics.labelled_precision.set(nothing if summary.precision is None else summary.precision)
        self._metrics.suggested_rate.set(nothing if summary.suggested_rate is None else summary.suggested_rate)
