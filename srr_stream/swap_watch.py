"""Automatic rollback: a freshly swapped model is on probation, and the one it replaced scores along.

Both score the same records, so a stream that changes during the probation is not mistaken for a bad model: then the old
one flags as much. After it, nothing is watched any more: drift is the trainer's.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from srr_stream.logs import get_logger
from srr_stream.shadow import Columns, Tally, side_by_side
from srr_stream.shares import greatest_share, least_share

if TYPE_CHECKING:
    from srr_stream.live_model import Live, LiveModel
    from srr_stream.metrics import ScorerMetrics

log = get_logger(__name__)

MIN_RECORDS = 200
"""No verdict on fewer, of which each stands for ten live ones: a burst of anomalies is no fault of the model."""
_Z = 3.0
"""Deviations that chance may take; the tally is looked at after every batch."""


def why_roll_back(
    tally: Tally, *, max_flagged_ratio: float, max_flagged_factor: float, false_alarm_rate: float
) -> str | None:
    """Return in words which bound the live model has surely left, None if it has not.

    A bound that the old model leaves as well is not held against the new one. There is no lower bound: after a drift
    the old model flags everything, and the new one rightly does not.
    """
    if tally.n_records < MIN_RECORDS:
        return None
    least = least_share(tally.n_live, tally.n_records, z=_Z)
    told = f"flags {tally.live_ratio:.2%} of {tally.n_records:,} live records, its predecessor {tally.other_ratio:.2%}"
    if least > max_flagged_ratio >= tally.other_ratio:
        return f"{told}; allowed: {max_flagged_ratio:.2%} (gate.max_flagged_ratio)"
    if least > max_flagged_factor * max(tally.other_ratio, false_alarm_rate):
        return f"{told}; allowed: {max_flagged_factor:g} times as much (gate.max_flagged_factor)"
    return None


def is_silent(tally: Tally, *, max_flagged_factor: float) -> bool:
    """Return whether the live model surely flags less than the old one by more than the factor."""
    n = tally.n_records
    return max_flagged_factor * greatest_share(tally.n_live, n, z=_Z) < least_share(tally.n_other, n, z=_Z)


class SwapWatch:
    """Ask for a rollback when a new model leaves its bounds within its probation.

    Versions that were live before in this process are not watched again: a rollback, or a person, brought them back.

    Parameters
    ----------
    live_model
        Knows the model that was replaced, and rolls back.
    max_flagged_ratio, max_flagged_factor
        Those of the gate.
    probation
        Records from the swap on.
    """

    def __init__(
        self,
        live_model: LiveModel,
        *,
        metrics: ScorerMetrics,
        max_flagged_ratio: float,
        max_flagged_factor: float,
        probation: int,
    ) -> None:
        self._live_model = live_model
        self._metrics = metrics
        self.set_bounds(max_flagged_ratio=max_flagged_ratio, max_flagged_factor=max_flagged_factor, probation=probation)
        self._false_alarm_rate = math.nan
        self._served: set[int] = set()
        self._version: int | None = None
        self._previous: Live | None = None
        self._tally = Tally()
        self._n_left = 0

    def set_bounds(self, *, max_flagged_ratio: float, max_flagged_factor: float, probation: int) -> None:
        """Go by other bounds from the next batch on; a probation that runs keeps its length."""
        self._max_flagged_ratio = max_flagged_ratio
        self._max_flagged_factor = max_flagged_factor
        self._probation = probation

    def observe(self, live: Live, features: Columns, flagged: NDArray[np.bool_]) -> None:
        """Take a batch that `live` has scored; what fails here never reaches the scorer."""
        if live.version != self._version:
            self._begin(live)
        elif live.model.false_alarm_rate != self._false_alarm_rate:
            self._begin_anew()
        self._false_alarm_rate = live.model.false_alarm_rate
        previous = self._previous
        if previous is None or not len(flagged):
            return
        try:
            mine, theirs = side_by_side(previous.model, features, flagged)
        except Exception:  # the old model is not needed to score: whatever it dies of, live scoring must not
            version = previous.version
            log.exception("version %d cannot score along any more; no probation", version, version=version)
            self._end()
            return
        self._tally = self._tally.plus(mine, theirs)
        self._n_left -= len(flagged)
        self._metrics.probation_flagged.labels("live").set(self._tally.live_ratio)
        self._metrics.probation_flagged.labels("previous").set(self._tally.other_ratio)
        reason = why_roll_back(
            self._tally,
            max_flagged_ratio=self._max_flagged_ratio,
            max_flagged_factor=self._factor(live, previous),
            false_alarm_rate=live.model.false_alarm_rate,
        )
        if reason is not None:
            self._live_model.roll_back(live.version, previous.version, f"version {live.version} {reason}")
            self._end()
        elif self._n_left <= 0:
            self._tell(live, previous)
            self._end()

    def _begin(self, live: Live) -> None:
        self._version, self._previous = live.version, None
        self._tally, self._n_left = Tally(), self._probation
        self._metrics.probation_flagged.clear()
        is_new = live.version not in self._served
        self._served.add(live.version)
        previous = self._live_model.previous
        if previous is None or self._live_model.current is not live:  # replaced already: its successor is compared
            return
        if is_new:
            self._previous = previous
        else:
            self._live_model.forget_previous(previous.version)

    def end(self) -> None:
        """End a probation that runs, and let go of the model that was replaced: nobody watches any more."""
        self._end()
        self._live_model.forget_previous()

    def _begin_anew(self) -> None:
        """Count from zero: what was flagged by another α is no measure, neither of the one model nor of the other."""
        previous = self._live_model.previous
        if self._previous is not None and previous is not None and previous.version == self._previous.version:
            self._previous, self._tally = previous, Tally()

    def _end(self) -> None:
        if self._previous is not None:
            self._live_model.forget_previous(self._previous.version)
        self._previous = None
        self._metrics.probation_flagged.clear()

    def _factor(self, live: Live, previous: Live) -> float:
        """Return the allowed factor: of pictures, what a stand-in flags bounds nobody, as in the gate."""
        is_stand_in = previous.model.takes_pictures
        is_stand_in &= previous.model.representation_name != live.model.representation_name
        return math.inf if is_stand_in else self._max_flagged_factor

    def _tell(self, live: Live, previous: Live) -> None:
        tally = self._tally
        level = logging.INFO
        text = "has served its probation"
        if is_silent(tally, max_flagged_factor=self._max_flagged_factor):
            level, text = logging.WARNING, "has served its probation, but may be blind"
        log.log(
            level,
            "version %d %s: it flags %.2f %% of %d live records, version %d %.2f %%",
            live.version,
            text,
            100 * tally.live_ratio,
            tally.n_records,
            previous.version,
            100 * tally.other_ratio,
            version=live.version,
            previous=previous.version,
        )
