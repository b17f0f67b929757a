"""How good scores, flags and refinements are, measured with labels that the detector never sees."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def mid_ranks(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each finite number, from 1; equal ones share the mean of theirs.

    As SciPy's ``rankdata``, for which a trainer would have to load ``scipy.stats`` for a second.

    Examples
    --------
    >>> mid_ranks(np.array([0.3, 0.1, 0.3]))
    array([2.5, 1. , 2.5])
    """
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def roc_auc(is_anomaly: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Return the chance that an anomaly scores higher than a normal row, ties counting half.

    Raises
    ------
    ValueError
        If there is no anomaly, or no normal row.

    Examples
    --------
    >>> roc_auc(np.array([False, False, True]), np.array([0.1, 0.9, 0.5]))
    0.5
    """
    n_anomalies, n = _counts(is_anomaly, score)
    rank_sum = float(mid_ranks(score)[is_anomaly].sum())
    return (rank_sum - n_anomalies * (n_anomalies + 1) / 2) / (n_anomalies * (n - n_anomalies))


def average_precision(is_anomaly: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Return the area under precision over recall, in steps; rows of equal score enter together.

    Raises
    ------
    ValueError
        If there is no anomaly, or no normal row.
    """
    precision, recall = _precision_recall(is_anomaly, score)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def recall_at_precision(is_anomaly: NDArray[np.bool_], score: NDArray[np.float64], precision: float) -> float:
    """Return the greatest recall of any threshold with at least `precision` (0 to 1); 0.0 if there is none."""
    precisions, recalls = _precision_recall(is_anomaly, score)
    return float(recalls[precisions >= precision].max(initial=0.0))


def precision_recall_f1(is_anomaly: NDArray[np.bool_], flagged: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return precision, recall and F1 of flags; each 0.0 where it has nothing to divide by."""
    hits = int(np.sum(is_anomaly & flagged))
    precision = hits / max(int(flagged.sum()), 1)
    recall = hits / max(int(is_anomaly.sum()), 1)
    f1 = 2 * hits / max(int(flagged.sum()) + int(is_anomaly.sum()), 1)
    return precision, recall, f1


def precision_at(is_anomaly: NDArray[np.bool_], score: NDArray[np.float64], k: int) -> float:
    """Return the share of anomalies among the `k` highest scores; of equal scores at the edge each counts its share.

    Raises
    ------
    ValueError
        If `k` is not from 1 to the number of rows.

    Examples
    --------
    >>> precision_at(np.array([True, False, True, False]), np.array([4.0, 3.0, 2.0, 1.0]), 2)
    0.5
    """
    if len(is_anomaly) != len(score) or not 1 <= k <= len(score):
        raise ValueError(f"k is {k} of {len(score)} scores and {len(is_anomaly)} labels; needed: 1 to as many, of each")
    edge = np.partition(score, len(score) - k)[len(score) - k]
    above, at_edge = score > edge, score == edge
    hits = float(is_anomaly[above].sum()) + (k - int(above.sum())) * float(is_anomaly[at_edge].mean())
    return hits / k


def f1_at_true_ratio(is_anomaly: NDArray[np.bool_], score: NDArray[np.float64], *, seed: int = 0) -> float:
    """Return F1 when as many of the highest scores are flagged as there are anomalies (the paper's F1).

    Precision, recall and F1 are then equal. Equal scores are ordered at random by `seed`.
    """
    n_anomalies, n = _counts(is_anomaly, score)
    order = np.lexsort((np.random.default_rng(seed).permutation(n), score))
    return float(is_anomaly[order[n - n_anomalies :]].mean())


def refinement_efficacy(is_anomaly: NDArray[np.bool_], kept: NDArray[np.bool_]) -> tuple[float, float]:
    """Return which share of the anomalies, and which share of the normal rows, refinement removed."""
    _counts(is_anomaly, kept)
    return float((~kept[is_anomaly]).mean()), float((~kept[~is_anomaly]).mean())


def _precision_recall(
    is_anomaly: NDArray[np.bool_], score: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision and recall at every distinct threshold, highest threshold first."""
    n_anomalies, n = _counts(is_anomaly, score)
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(is_anomaly[order])
    is_last_of_equal = np.r_[np.diff(score[order]) != 0, True]
    n_flagged = np.arange(1, n + 1)[is_last_of_equal]
    return hits[is_last_of_equal] / n_flagged, hits[is_last_of_equal] / n_anomalies


def _counts(is_anomaly: NDArray[np.bool_], other: NDArray[Any]) -> tuple[int, int]:
    n_anomalies, n = int(np.sum(is_anomaly)), len(is_anomaly)
    if len(other) != n or not 0 < n_anomalies < n:
        raise ValueError(
            f"labels have {n_anomalies} anomalies in {n} rows beside {len(other)} values; "
            "needed: equal lengths, an anomaly and a normal row"
        )
    return n_anomalies, n
