"""RefineData: which rows of a contaminated window to learn from, by the vote of an ensemble (equations 1 and 2).

Yoon et al., "Self-supervise, Refine, Repeat" (2022), section 3. Symbols: D the rows, K `n_subsets`, γ `gamma`, η_k the
k-th threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.occ import OneClassClassifier

GAMMA_BOUNDS = (0.005, 0.2)
"""Estimated γ is kept within these: the paper's value for clean data, and what a window can lose."""
MIN_SUBSET_ROWS = 20


@dataclass(frozen=True)
class Refinement:
    """What an ensemble made of the rows."""

    kept: NDArray[np.bool_]
    """``(n,)``: rows that no member rejects (equation 1)."""
    votes: NDArray[np.int64]
    """``(n,)``: how many members reject the row."""
    members: tuple[OneClassClassifier, ...]
    thresholds: NDArray[np.float64]
    """η, ``(K,)``: the least score that a member rejects."""

    @property
    def excluded_ratio(self) -> float:
        """Share of the rows that are not kept."""
        return 1.0 - float(self.kept.mean())

    @property
    def agreement(self) -> float:
        """Of the rows that any member rejects, the mean share of members that do; 1.0 if none is rejected."""
        rejected = self.votes[self.votes > 0]
        return float(rejected.mean() / len(self.members)) if len(rejected) else 1.0

    def keeps(self, Z: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which other embeddings ``(n, ...)`` no member rejects, ``(n,)``."""
        is_kept = np.ones(len(Z), dtype=bool)
        for member, threshold in zip(self.members, self.thresholds, strict=True):
            is_kept &= member.score(Z) < threshold
        return is_kept


def refine(
    Z: NDArray[Any],
    make_occ: Callable[[], OneClassClassifier],
    *,
    n_subsets: int,
    gamma: float,
    rng: np.random.Generator,
    n_rounds: int = 1,
) -> Refinement:
    """Split the rows into subsets, fit one classifier on each, and keep the rows that none rejects.

    Each member rejects exactly the ⌈γN⌉ highest of its scores of *all* rows (equation 2); of equal scores `rng` picks
    some, since "at least the percentile" would empty a window of equal rows. Always starts from all rows, so a row once
    removed can come back.

    Differs from the paper: with `n_rounds` above 1 the members are fitted again on the kept rows of their subsets and
    all rows judged again, which finds more when anomalies bend the first fit.

    Parameters
    ----------
    Z
        ``(n, d)`` or ``(n, m, d)`` embeddings.
    n_subsets
        K; fewer are made where a subset would have fewer than 20 rows.
    gamma
        Share that each member rejects, 0 < γ < 1; between γ and K γ of the rows are lost.
    n_rounds
        At least 1. Grows the cost linearly; 5 to 10 is where gains end.
    """
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma is {gamma!r}; allowed: above 0 and below 1")
    n = len(Z)
    subsets = np.array_split(rng.permutation(n), max(1, min(n_subsets, n // MIN_SUBSET_ROWS)))
    n_rejected = min(n - 1, math.ceil(gamma * n - 1e-9))
    tie_break = rng.permutation(n)
    kept = np.ones(n, dtype=bool)
    refinement: Refinement | None = None
    for _ in range(n_rounds):
        members = [make_occ().fit(Z[_still_kept(subset, kept)]) for subset in subsets]
        scores = np.array([member.score(Z) for member in members])
        tops = [np.lexsort((tie_break, s))[n - n_rejected :] for s in scores]
        votes = np.bincount(np.concatenate(tops), minlength=n)
        thresholds = np.array([s[top].min() for s, top in zip(scores, tops, strict=True)])
        is_settled = refinement is not None and np.array_equal(votes, refinement.votes)
        refinement = Refinement(votes == 0, votes, tuple(members), thresholds)
        if is_settled:
            break
        kept = refinement.kept
    if refinement is None:
        raise ValueError(f"n_rounds is {n_rounds!r}; allowed: at least 1")
    return refinement


def _still_kept(subset: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the kept rows of a subset, or all of it where less than half is left: too few to fit anything on."""
    rows = subset[kept[subset]]
    return rows if 2 * len(rows) >= len(subset) else subset


def estimate_gamma(scores: NDArray[np.float64]) -> float:
    """Return γ: twice Otsu's share, on the square root of the shifted scores, within `GAMMA_BOUNDS`.

    Differs from the paper: on raw log densities Otsu nearly switches refinement off; their root is about a distance.
    """
    low, high = GAMMA_BOUNDS
    return float(np.clip(2.0 * otsu_share(np.sqrt(scores - scores.min())), low, high))


def otsu_share(values: NDArray[np.float64]) -> float:
    """Return the share of values above Otsu's threshold (1979): the split with the greatest variance between its sides.

    Parameters
    ----------
    values
        ``(n,)``, n ≥ 1. Sorted and split between any two different neighbours, without a histogram.

    Returns
    -------
    float
        0 to 1, exclusive; 0.0 if all values are equal.
    """
    ordered = np.sort(values)
    n = len(ordered)
    if ordered[0] == ordered[-1]:
        return 0.0
    n_below = np.arange(1, n)
    sums = np.cumsum(ordered)
    mean_below = sums[:-1] / n_below
    mean_above = (sums[-1] - sums[:-1]) / (n - n_below)
    between = n_below * (n - n_below) * np.square(mean_above - mean_below)
    between[ordered[1:] == ordered[:-1]] = -1.0  # a threshold cannot part equal values
    return float(n - n_below[int(np.argmax(between))]) / n
