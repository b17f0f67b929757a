"""Row-wise work in blocks of one fixed size, so that a row's result never depends on the rows beside it.

A matrix product sums in an order that depends on the shapes, so the last bits of a row's score would change with
the size of its batch. With zero-padded blocks of one shape they do not, and the same record gets the same verdict
however it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 128
"""A multiple of the row tile of every matrix kernel; small, since a single record pays for a whole block."""
CHUNK_ROWS = 1024
"""As many rows go through all stages one after the other: embedded by GOAD they are 1 MiB, which stays in the cache."""


def by_blocks(
    function: Callable[[NDArray[Any]], NDArray[Any]],
    X: NDArray[Any],
    *,
    n_rows: int = BLOCK_ROWS,
    least_rows: int | None = None,
) -> NDArray[Any]:
    """Return ``function(X)`` computed on zero-padded blocks of `n_rows` rows.

    Parameters
    ----------
    function
        Maps ``(n_rows, ...)`` to ``(n_rows, ...)``, row by row; also called once, on zeros, if `X` is empty.
    X
        ``(n, ...)``, n ≥ 0.
    n_rows, least_rows
        The last block has as few rows as hold what is left, of `least_rows` doubled again and again; None: as many as
        all others. Few rows are quicker so; only for functions that give a row the same bits in all these blocks.

    Returns
    -------
    NDArray
        ``(n, ...)``.
    """
    n = len(X)
    least_rows = least_rows or n_rows
    first = function(_block(X, 0, n_rows, least_rows))
    result = np.empty((n, *first.shape[1:]), dtype=first.dtype)
    result[:n_rows] = first[:n]
    for start in range(n_rows, n, n_rows):
        result[start : start + n_rows] = function(_block(X, start, n_rows, least_rows))[: n - start]
    return result


def by_chunks(function: Callable[[NDArray[Any]], NDArray[Any]], X: NDArray[Any]) -> NDArray[Any]:
    """Return ``function(X)`` computed on slices of :data:`CHUNK_ROWS` rows.

    Parameters
    ----------
    function
        Maps ``(k, ...)`` to ``(k, ...)``, a row the same whatever is beside it.
    X
        ``(n, ...)``, n ≥ 0.

    Returns
    -------
    NDArray
        ``(n, ...)``.
    """
    if len(X) <= CHUNK_ROWS:
        return function(X)
    return np.concatenate([function(X[start : start + CHUNK_ROWS]) for start in range(0, len(X), CHUNK_ROWS)])


def _block(X: NDArray[Any], start: int, n_rows: int, least_rows: int) -> NDArray[Any]:
    rows = X[start : start + n_rows]
    if len(rows) == n_rows:
        return rows
    while least_rows < len(rows):
        least_rows *= 2
    n_rows = min(n_rows, least_rows)
    padded = np.zeros((n_rows, *X.shape[1:]), dtype=X.dtype)
    padded[: len(rows)] = rows
    return padded
