"""Shadow scoring: another model scores a part of the live batches beside the one whose verdicts count.

Here the other is the challenger that waits for a person, who sees what it would flag; :mod:`srr_stream.swap_watch` does
the same with the model that was replaced. Nothing of it reaches a topic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from srr_stream.logs import get_logger
from srr_stream.shares import share

if TYPE_CHECKING:
    from models.detector import Model
    from srr_stream.live_model import Live, LiveModel
    from srr_stream.metrics import ScorerMetrics

log = get_logger(__name__)

Columns = Mapping[str, NDArray[Any]]

SHARE = 0.1
"""Of a batch that the other scores too. Larger: surer sooner, and scoring takes so much longer."""


@dataclass(frozen=True)
class Tally:
    """Records that two models scored, and how many each flagged."""

    n_records: int = 0
    n_live: int = 0
    n_other: int = 0

    @property
    def live_ratio(self) -> float:
        """Share that the live model flagged."""
        return share(self.n_live, self.n_records)

    @property
    def other_ratio(self) -> float:
        """Share that the other one flagged."""
        return share(self.n_other, self.n_records)

    def plus(self, live: NDArray[np.bool_], other: NDArray[np.bool_]) -> Tally:
        """Return the tally with n more records, flagged or not by the one and by the other."""
        return Tally(self.n_records + len(live), self.n_live + int(live.sum()), self.n_other + int(other.sum()))


def side_by_side(
    other: Model, features: Columns, flagged: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return what the live model and another flag of some rows of a batch, spread evenly over it.

    Parameters
    ----------
    features
        Field → ``(n,)``.
    flagged
        ``(n,)``, by the live model.

    Returns
    -------
    live, other
        ``(m,)`` each; m is `SHARE` of n, rounded up.
    """
    n_rows = math.ceil(SHARE * len(flagged))
    rows = np.linspace(0, len(flagged) - 1, n_rows).round().astype(np.intp)
    return flagged[rows], other.score({name: column[rows] for name, column in features.items()}).flagged


class Shadow:
    """Let the waiting challenger score along, and count what it would flag.

    Parameters
    ----------
    live_model
        Whose :attr:`LiveModel.challenger` it is.
    """

    def __init__(self, live_model: LiveModel, *, metrics: ScorerMetrics) -> None:
        self._live_model = live_model
        self._metrics = metrics
        self._version: int | None = None
        self._judged_by: tuple[int, float] | None = None
        """Live version and α."""
        self._tally = Tally()

    @property
    def text(self) -> str:
        """What is known of the challenger, in words; empty without one."""
        if self._version is None:
            return ""
        tally = self._tally
        return (
            f"version {self._version} waits: it flags {tally.other_ratio:.2%} of {tally.n_records:,} live records, "
            f"the live model {tally.live_ratio:.2%}"
        )

    def observe(self, live: Live, features: Columns, flagged: NDArray[np.bool_]) -> None:
        """Take a batch that `live` has scored; what fails here never reaches the scorer."""
        challenger = self._live_model.challenger
        if challenger is not None and challenger.version == live.version:  # a person promoted it a moment ago
            challenger = None
        version = challenger.version if challenger is not None else None
        judged_by = live.version, live.model.false_alarm_rate
        if (version, judged_by) != (self._version, self._judged_by):
            self._version, self._judged_by, self._tally = version, judged_by, Tally()
            self._metrics.shadow_flagged.clear()
        if challenger is None or not len(flagged):
            return
        try:
            mine, theirs = side_by_side(challenger.model, features, flagged)
        except Exception:  # a challenger is nobody's concern yet: whatever it dies of, live scoring must not
            log.exception(
                "version %d cannot score live records; it waits, but is not tried any more", version, version=version
            )
            self._live_model.drop_challenger(challenger.version)
            return
        self._tally = self._tally.plus(mine, theirs)
        n_flagged = int(theirs.sum())
        self._metrics.shadow_records.labels("flagged").inc(n_flagged)
        self._metrics.shadow_records.labels("normal").inc(len(theirs) - n_flagged)
        self._metrics.shadow_flagged.labels("challenger").set(self._tally.other_ratio)
        self._metrics.shadow_flagged.labels("live").set(self._tally.live_ratio)
