"""RefineData: which rows of a contaminated window to learn from, by the vote of an ensemble (equations 1 and 2).

Yoon et al., "Self-supervise, Refine, Repeat" (2022), section 3. Symbols: D the rows, K `n_subsets`, γ `gamma`, η_k the
k-th threshold. How large γ should be where nobody knows is :mod:`models.contamination`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.occ import OneClassClassifier
from models.occ.gde import GDE, score_together

MIN_SUBSET_ROWS = 20
VOTES = ("unanimous", "majority")
REMOVALS = ("hard", "soft")
_WEIGHT_STEEPNESS = 8.0
"""A row weighs 0.98 halfway from the threshold to the median score, 0.5 at the threshold, 0.02 as far beyond it."""


@dataclass(frozen=True)
class Known:
    """What people know of some of the rows: no vote overrules it.

    Raises
    ------
    ValueError
        If a row is both.
    """

    is_anomaly: NDArray[np.bool_]
    """``(n,)``: rows that nothing is learned from."""
    is_normal: NDArray[np.bool_]
    """``(n,)``: rows that are kept."""

    def __post_init__(self) -> None:
        n_both = int((self.is_anomaly & self.is_normal).sum())
        if n_both:
            raise ValueError(f"{n_both} rows are known both as anomalies and as normal; allowed: one of them")

    @classmethod
    def nothing(cls, n: int) -> Known:
        """Return that nothing is known of `n` rows."""
        return cls(np.zeros(n, dtype=bool), np.zeros(n, dtype=bool))

    def of(self, rows: NDArray[Any]) -> Known:
        """Return the same of some rows."""
        return Known(self.is_anomaly[rows], self.is_normal[rows])

    def settle(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which rows are kept in the end, ``(n,)``, of those that a vote keeps."""
        settled: NDArray[np.bool_] = (kept & ~self.is_anomaly) | self.is_normal
        return settled


@dataclass(frozen=True)
class Refinement:
    """What an ensemble made of the rows."""

    kept: NDArray[np.bool_]
    """``(n,)``: rows that the vote keeps; with a unanimous one those that no member rejects (equation 1). Of rows that
    are known, what is known decides."""
    votes: NDArray[np.int64]
    """``(n,)``: how many members reject the row."""
    weights: NDArray[np.float64]
    """``(n,)``, 0 to 1: what a row counts in the next fit; 1 or 0 as it is kept, or a soft form of that."""
    members: tuple[OneClassClassifier, ...]
    thresholds: NDArray[np.float64]
    """η, ``(K,)``: the least score that a member rejects."""
    n_votes: int
    """So many rejections exclude a row."""

    @property
    def excluded_ratio(self) -> float:
        """Share of the rows that are not kept."""
        return 1.0 - float(self.kept.mean())

    @property
    def agreement(self) -> float:
        """Of the rows that any member rejects, the mean share of members that do; 1.0 if none is rejected."""
        rejected = self.votes[self.votes > 0]
        return float(rejected.mean() / len(self.members)) if len(rejected) else 1.0

    def votes_on(self, Z: NDArray[Any]) -> NDArray[np.int64]:
        """Return how many members reject other embeddings ``(n, ...)`` by the same thresholds, ``(n,)``."""
        votes: NDArray[np.int64] = (score_members(self.members, Z) >= self.thresholds[:, None]).sum(axis=0)
        return votes

    def keeps(self, Z: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which other embeddings ``(n, ...)`` the same vote by the same thresholds keeps, ``(n,)``."""
        kept: NDArray[np.bool_] = self.votes_on(Z) < self.n_votes
        return kept


def keep_all(n: int, known: Known | None = None) -> Refinement:
    """Return the refinement that was not made: every one of `n` rows is kept, by nobody, but for known anomalies."""
    kept = (known or Known.nothing(n)).settle(np.ones(n, dtype=bool))
    return Refinement(kept, np.zeros(n, dtype=np.int64), kept.astype(np.float64), (), np.empty(0), 1)


def refine(
    Z: NDArray[Any],
    make_occ: Callable[[], OneClassClassifier],
    *,
    n_subsets: int,
    gamma: float,
    rng: np.random.Generator,
    n_rounds: int = 1,
    vote: str = "unanimous",
    removal: str = "hard",
    known: Known | None = None,
) -> Refinement:
    """Split the rows into subsets, fit one classifier on each, and keep the rows that none rejects.

    Each member rejects exactly the ⌈γN⌉ highest of its scores of *all* rows (equation 2); of equal scores `rng` picks
    some, since "at least the percentile" would empty a window of equal rows. Always starts from all rows, so a row once
    removed can come back.

    Differs from the paper where asked to: with `n_rounds` above 1 the members are fitted again on the kept rows of
    their subsets and all rows judged again, which finds more when anomalies bend the first fit.

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
    vote
        ``unanimous``: a row is kept if no member rejects it (the paper); ``majority``: if at most half of them do.
    removal
        ``hard``: what is not kept weighs nothing (the paper); ``soft``: a row's weight falls smoothly around the
        thresholds, so that small subsets do not lose rows that they need.
    known
        Rows of which it is known what they are. An anomaly is in no subset and is never kept; a normal row always is.
        The votes on them are counted all the same.

    Raises
    ------
    ValueError
        If a parameter is not allowed, or fewer than two rows are not known as anomalies.
    """
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma is {gamma!r}; allowed: above 0 and below 1")
    if n_rounds < 1:
        raise ValueError(f"n_rounds is {n_rounds!r}; allowed: at least 1")
    for name, value, allowed in (("vote", vote, VOTES), ("removal", removal, REMOVALS)):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    n = len(Z)
    known = known or Known.nothing(n)
    order = rng.permutation(n)
    order = order[~known.is_anomaly[order]]
    if len(order) < min(2, n):
        raise ValueError(f"all but {len(order)} of {n} rows are known as anomalies; needed: at least 2 that are not")
    subsets = np.array_split(order, max(1, min(n_subsets, len(order) // MIN_SUBSET_ROWS)))
    n_rejected = min(n - 1, math.ceil(gamma * n - 1e-9))
    n_votes = 1 if vote == "unanimous" else len(subsets) // 2 + 1
    tie_break = rng.permutation(n)
    weights: NDArray[np.float64] | None = None
    refinement: Refinement | None = None
    for _ in range(n_rounds):
        members = [_fit(make_occ(), Z, subset, weights) for subset in subsets]
        thresholds = np.empty(len(subsets))
        votes, new_weights = np.zeros(n, dtype=np.int64), np.ones(n)
        for k, score in enumerate(score_members(members, Z)):
            top = highest(score, n_rejected, tie_break)
            thresholds[k] = score[top].min(initial=np.inf)
            votes[top] += 1
            if removal == "soft":
                new_weights *= _soft_weights(score, thresholds[k])
        kept = known.settle(votes < n_votes)
        weights = kept.astype(np.float64)
        if removal == "soft":
            weights = np.where(known.is_anomaly | known.is_normal, weights, new_weights)
        is_settled = refinement is not None and np.array_equal(votes, refinement.votes)
        refinement = Refinement(kept, votes, weights, tuple(members), thresholds, n_votes)
        if is_settled:
            break
    assert refinement is not None
    return refinement


def score_members(members: Sequence[OneClassClassifier], Z: NDArray[Any]) -> NDArray[np.float64]:
    """Return the scores of embeddings ``(n, ...)`` by each of K members, ``(K, n)``."""
    gdes = [member for member in members if isinstance(member, GDE)]
    if members and len(gdes) == len(members):
        return score_together(gdes, Z)
    return np.array([member.score(Z) for member in members]).reshape(len(members), len(Z))


def highest(score: NDArray[np.float64], n_highest: int, tie_break: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return which `n_highest` of ``(n,)`` scores are the highest, equal ones by the higher `tie_break` ``(n,)``."""
    n = len(score)
    if n_highest == 0:
        return np.empty(0, dtype=np.intp)
    threshold = np.partition(score, n - n_highest)[n - n_highest]
    above = np.flatnonzero(score > threshold)
    equal = np.flatnonzero(score == threshold)
    picked = equal[np.argsort(tie_break[equal])[len(equal) - (n_highest - len(above)) :]]
    return np.concatenate([above, picked])


def _fit(
    member: OneClassClassifier, Z: NDArray[Any], subset: NDArray[np.intp], weights: NDArray[np.float64] | None
) -> OneClassClassifier:
    """Fit to the weighted rows of a subset, or to all of it where less than half is left: too few to fit on."""
    if weights is None or 2.0 * weights[subset].sum() < len(subset):
        weights = np.ones(len(Z))
    return fit_weighted(member, Z, weights, subset)


def fit_weighted(
    classifier: OneClassClassifier, Z: NDArray[Any], weights: NDArray[np.float64], rows: NDArray[np.intp]
) -> OneClassClassifier:
    """Fit to some `rows` ``(r,)`` of ``(n, ...)``, of which refinement left `weights` ``(n,)``, 0 to 1.

    Rows removed whole are not seen. A Gaussian reads the others where they are; for other classifiers they are copied.
    """
    of_rows = weights[rows]
    is_hard = bool(((of_rows == 0.0) | (of_rows == 1.0)).all())
    if is_hard:
        rows = rows[of_rows == 1.0]
    if isinstance(classifier, GDE):
        return classifier.fit(Z, None if is_hard else weights, rows=np.sort(rows))
    return classifier.fit(Z[rows]) if is_hard else classifier.fit(Z[rows], of_rows)


def _soft_weights(score: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(8 (s - η) / (η - median))): 0.5 at the threshold, 0.98 halfway to the median."""
    distance = threshold - float(np.median(score))
    if not distance > 0.0:
        return np.ones(len(score))
    steps = np.clip(_WEIGHT_STEEPNESS * (score - threshold) / distance, -500.0, 500.0)
    weights: NDArray[np.float64] = 1.0 / (1.0 + np.exp(steps))
    return weights
