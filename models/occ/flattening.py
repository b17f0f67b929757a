"""What classifiers of flat rows share: embeddings as a matrix, products of it, the choice of the rows to fit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_WEIGHT = 0.5
"""Classifiers that cannot weigh rows leave out those below this weight."""
ANY_WEIGHT = float(np.finfo(np.float64).tiny)
"""For classifiers that can: only rows that weigh nothing are left out."""

_TILE = 16


def flatten(Z: NDArray[Any]) -> NDArray[Any]:
    """Return ``(n, d)`` or ``(n, m, d)`` embeddings as ``(n, m d)``."""
    return Z.reshape(len(Z), math.prod(Z.shape[1:]))


def whole_tiles(matrix: NDArray[Any]) -> NDArray[Any]:
    """Return ``(d, r)`` with columns of zeros added up to a multiple of 16, in memory order.

    Matrix kernels take left-over columns apart, and then sum some rows in another order than others: the last bits of a
    row's product would depend on its place in the block.
    """
    d, r = matrix.shape
    tiles = np.zeros((d, -(-r // _TILE) * _TILE), dtype=matrix.dtype)
    tiles[:, :r] = matrix
    return tiles


def choose_rows(
    n: int,
    weights: NDArray[np.float64] | None,
    *,
    least_weight: float = LEAST_WEIGHT,
    max_rows: int | None = None,
    seed: int = 0,
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Choose the rows to fit: those of at least `least_weight`, of which at most `max_rows`, drawn by `seed`.

    Where fewer than two rows weigh enough, all are taken, each with weight 1.

    Returns
    -------
    rows : ``(r,)`` ascending.
    weights : ``(r,)`` above 0; 1.0 each where none are given.
    """
    rows = np.arange(n)
    if weights is not None:
        rows = np.flatnonzero(weights >= least_weight)
        if len(rows) < 2:
            rows, weights = np.arange(n), None
    if max_rows is not None and len(rows) > max_rows:
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_rows, replace=False))
    return rows, np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)[rows]


def whole_number(name: str, value: Any, *, least: int = 1) -> int:
    """Return an option that counts something; ValueError if it is no whole number or below `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} is {value!r}; allowed: whole numbers from {least} on")
    return int(value)
