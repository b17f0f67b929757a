"""What a challenger must show, without a label, before it replaces the champion.

Pure functions over scores; the trainer asks, the manifest keeps the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.evaluation import mid_ranks

if TYPE_CHECKING:
    from models.detector import Model, Scores

Columns = Mapping[str, NDArray[Any]]

CHECKS = (
    "non_finite_scores",
    "excluded_ratio",
    "flagged_ratio",
    "synthetic_auc",
    "flagged_factor",
    "synthetic_auc_margin",
    "rank_agreement",
    "forgotten_ratio",
    "reference_flagged_ratio",
    "refined_drift",
    "excluded_rise",
    "contamination_rise",
)
"""What is looked at: those that need a champion after those that do not, those of :mod:`srr_stream.poisoning` last."""

_LEAST_SIDE, _GREATEST_SIDE = 1 / 8, 1 / 2
"""Of a swapped patch, in parts of the picture's."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `bound` is what was allowed, in words; empty if it is only reported."""

    name: str
    """One of `CHECKS`."""
    value: float
    bound: str
    passed: bool
    advice: str = ""
    """What it looks like and what to do, if it failed."""


@dataclass(frozen=True)
class GateReport:
    """Every check, and so the decision."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether the challenger may be champion."""
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """The decision in words."""
        failed = [
            f"{c.name} is {c.value:.4g}, allowed: {c.bound}{f' ({c.advice})' if c.advice else ''}"
            for c in self.checks
            if not c.passed
        ]
        return "; ".join(failed) or "all checks passed"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {"passed": self.passed, "reason": self.reason, "checks": [asdict(c) for c in self.checks]}


@dataclass(frozen=True)
class GateBounds:
    """What the gate allows."""

    max_excluded_ratio: float
    """Of the window, by the challenger's refinement."""
    max_flagged_ratio: float
    """Of the newest records, by the challenger."""
    max_flagged_factor: float
    """The challenger may flag this many times what the champion flags (or its false-alarm rate, if that is more).

    There is no lower bound: after a drift the champion flags everything, and its successor must be let in. Nor an upper
    one over a champion of pictures that is of another representation, as after a cold start.
    """
    min_synthetic_auc_margin: float
    """Lowest allowed difference of the areas under the ROC curve at telling records from made-up anomalies."""
    max_forgotten_ratio: float | None
    """See :func:`srr_stream.poisoning.reference_checks`; None: nobody asks a reference."""


def judge(
    challenger: Model,
    champion: Model | None,
    newest: Columns,
    bounds: GateBounds,
    *,
    excluded_ratio: float,
    seed: int,
) -> GateReport:
    """Compare a challenger with the champion on the newest records of the window.

    Parameters
    ----------
    newest
        Field → ``(n,)``, n ≥ 1: records that both models score.
    excluded_ratio
        Share of the window that the challenger's refinement dropped, 0 to 1.

    Returns
    -------
    GateReport
        With or without a champion; without one only the absolute bounds are checked.
    """
    anomalies = swap_fields(newest, np.random.default_rng(seed))
    mine, mine_synthetic = challenger.score(newest), challenger.score(anomalies)
    flagged = float(mine.flagged.mean())
    n_bad = int(np.sum(~np.isfinite(mine.score)) + np.sum(~np.isfinite(mine_synthetic.score)))
    auc = _auc(mine, mine_synthetic)
    checks = [
        Check("non_finite_scores", n_bad, "0", n_bad == 0),
        Check(
            "excluded_ratio",
            excluded_ratio,
            f"≤ {bounds.max_excluded_ratio:g}",
            excluded_ratio <= bounds.max_excluded_ratio,
        ),
        Check("flagged_ratio", flagged, f"≤ {bounds.max_flagged_ratio:g}", flagged <= bounds.max_flagged_ratio),
        Check("synthetic_auc", auc, "", True),
    ]
    if champion is not None and not n_bad:
        theirs = champion.score(newest)
        base = max(float(theirs.flagged.mean()), challenger.false_alarm_rate)
        factor = flagged / base
        margin = auc - _auc(theirs, champion.score(anomalies))
        agreement = _rank_correlation(mine.score, theirs.score)
        # What a stand-in flags says nothing of what its successor may: of small defects it sees none.
        is_stand_in = champion.takes_pictures and champion.representation_name != challenger.representation_name
        bound = "" if is_stand_in else f"≤ {bounds.max_flagged_factor:g}"
        checks += [
            Check("flagged_factor", factor, bound, is_stand_in or factor <= bounds.max_flagged_factor),
            Check(
                "synthetic_auc_margin",
                margin,
                f"≥ {bounds.min_synthetic_auc_margin:g}",
                margin >= bounds.min_synthetic_auc_margin,
            ),
            Check("rank_agreement", agreement, "", True),
        ]
    return GateReport(tuple(checks))


def swap_fields(columns: Columns, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Make anomalies of normal records: in every record a random half of the fields comes from other records.

    Each field keeps its distribution, so only what fields have to do with each other is wrong. With a single field,
    which has nothing to do with any other, its values are moved beyond their range instead; of pictures see
    :func:`swap_patches`.
    """
    if len(columns) == 1:
        ((name, column),) = columns.items()
        if column.ndim == 4:
            return {name: swap_patches(column, rng)}
        if column.dtype == object:
            return {name: np.full(len(column), "never seen", dtype=object)}
        seen = column[~np.isnan(column)]
        span = float(np.ptp(seen)) if seen.size else 0.0
        return {name: column + rng.choice([-1.0, 1.0], size=len(column)) * (span or 1.0)}
    swapped = {}
    for name, column in columns.items():
        is_taken = rng.random(len(column)) < 0.5
        swapped[name] = np.where(is_taken, column[rng.permutation(len(column))], column)
    return swapped


def swap_patches(pictures: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Make anomalies of normal pictures ``(n, h, w, channels)``: a rectangle of each comes from elsewhere in another.

    Its sides are an eighth to a half of the picture's.
    """
    n, height, width, _ = pictures.shape
    swapped = pictures.copy()
    others = rng.permutation(n)
    for row in range(n):
        h, w = (max(1, int(side * rng.uniform(_LEAST_SIDE, _GREATEST_SIDE))) for side in (height, width))
        top, other_top = rng.integers(height - h + 1, size=2)
        left, other_left = rng.integers(width - w + 1, size=2)
        patch = pictures[others[row], other_top : other_top + h, other_left : other_left + w]
        swapped[row, top : top + h, left : left + w] = patch
    return swapped


def _auc(normal: Scores, anomalous: Scores) -> float:
    """Return the chance that an anomaly scores higher than a normal record, ties counting half; 0.0 without scores."""
    n, m = len(normal.score), len(anomalous.score)
    scores = np.concatenate([normal.score, anomalous.score])
    if not np.isfinite(scores).all():
        return 0.0
    ranks = mid_ranks(scores)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def _rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Spearman's correlation, 0.0 where one side is constant or not finite."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0
    ranks_a, ranks_b = mid_ranks(a), mid_ranks(b)
    if np.ptp(ranks_a) == 0 or np.ptp(ranks_b) == 0:
        return 0.0
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])
