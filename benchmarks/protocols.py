"""Who trains on which rows: pure functions from labels and a seed to row numbers. Labels decide splits, never a fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_TEST_ANOMALIES = 5
"""A contaminated split that leaves fewer in the test set is refused: one anomaly would be over twenty points of F1."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Row numbers of the training and of the test set, each in random order."""

    train: Rows
    test: Rows


def halves(is_anomaly: NDArray[np.bool_], seed: int, max_rows: int | None = None) -> Split:
    """Return two random halves of at most `max_rows` random rows, anomalies and all; the odd row is for testing.

    The halves are drawn again where the test half has no anomaly or no normal row: nothing could be measured on it.

    Raises
    ------
    ValueError
        If there is no anomaly, or no normal row.
    """
    rng = np.random.default_rng(seed)
    if not 0 < is_anomaly.sum() < len(is_anomaly):
        raise ValueError(f"{int(is_anomaly.sum())} anomalies in {len(is_anomaly)} rows; needed: both kinds of rows")
    while True:
        rows = rng.permutation(len(is_anomaly))[:max_rows]
        n_train = len(rows) // 2
        test = rows[n_train:]
        if 0 < is_anomaly[test].sum() < len(test):
            return Split(rows[:n_train], test)


def contaminated(is_anomaly: NDArray[np.bool_], ratio: float, seed: int) -> Split:
    """Return the paper's split (section 4.1): train on half of the normal rows, `ratio` of them swapped for anomalies.

    floor(n_normal / 2) rows train at any ratio; round(ratio x that) of them are anomalies, and the normal rows that
    these replace are dropped. The test set is the other half of the normal rows and every anomaly not swapped in.
    For one seed a higher ratio adds anomalies to those of a lower one and changes nothing else, so that ratios compare.

    Parameters
    ----------
    is_anomaly
        ``(n,)``.
    ratio
        Share of anomalies in the training set, 0 ≤ ratio < 1.

    Raises
    ------
    ValueError
        If the ratio is out of range, or would leave fewer than `MIN_TEST_ANOMALIES` anomalies to test on.
    """
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"ratio is {ratio!r}; allowed: from 0, below 1")
    rng = np.random.default_rng(seed)
    normal, anomalous = rng.permutation(np.flatnonzero(~is_anomaly)), rng.permutation(np.flatnonzero(is_anomaly))
    n_train = len(normal) // 2
    n_swapped = round(ratio * n_train)
    if len(anomalous) - n_swapped < MIN_TEST_ANOMALIES:
        raise ValueError(
            f"ratio {ratio:g} puts {n_swapped} of {len(anomalous)} anomalies into training; "
            f"needed for the test: at least {MIN_TEST_ANOMALIES}"
        )
    train = np.concatenate([normal[: n_train - n_swapped], anomalous[:n_swapped]])
    test = np.concatenate([normal[n_train:], anomalous[n_swapped:]])
    return Split(rng.permutation(train), rng.permutation(test))


def is_feasible(is_anomaly: NDArray[np.bool_], ratio: float) -> bool:
    """Return whether :func:`contaminated` can make this ratio."""
    n_anomalies = int(is_anomaly.sum())
    n_train = (len(is_anomaly) - n_anomalies) // 2
    return n_anomalies - round(ratio * n_train) >= MIN_TEST_ANOMALIES


def drawn(n_rows: int, max_rows: int | None, seed: int) -> Rows:
    """Return all row numbers in order, or `max_rows` random ones of them, in order."""
    if max_rows is None or n_rows <= max_rows:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(seed).permutation(n_rows)[:max_rows])


def kdd_rev_rows(is_attack: NDArray[np.bool_], seed: int) -> Rows:
    """Return the rows of KDD-Rev: all normal connections, and a quarter as many attacks, drawn at random; in order."""
    normal, attacks = np.flatnonzero(~is_attack), np.flatnonzero(is_attack)
    chosen = np.random.default_rng(seed).permutation(attacks)[: len(normal) // 4]
    return np.sort(np.concatenate([normal, chosen]))


def z_scores(train: NDArray[Any], *others: NDArray[Any], keep_binary: bool = False) -> tuple[NDArray[np.float32], ...]:
    """Return all matrices scaled by mean and deviation of the (contaminated) training rows; a deviation of 0 is 1.

    With `keep_binary`, columns of zeros and ones in training stay as they are, as GOAD's loaders do for categories.
    """
    mean, scale = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    # The mean of equal float32 values is off by a rounding, and so the deviation is not quite 0.
    scale[train.min(axis=0) == train.max(axis=0)] = 1.0
    scale[scale == 0.0] = 1.0
    if keep_binary:
        is_binary = np.array([bool(np.isin(column, (0.0, 1.0)).all()) for column in train.T])
        mean[is_binary], scale[is_binary] = 0.0, 1.0
    return tuple(((rows - mean) / scale).astype(np.float32) for rows in (train, *others))


def to_unit_range(train: NDArray[Any], *others: NDArray[Any]) -> tuple[NDArray[np.float64], ...]:
    """Return all matrices scaled so that the training rows span 0 to 1; other rows are clipped to that range."""
    low = train.min(axis=0).astype(np.float64)
    span = train.max(axis=0) - low
    span[span == 0.0] = 1.0
    return tuple(np.clip((rows - low) / span, 0.0, 1.0) for rows in (train, *others))
