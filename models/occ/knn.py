"""k nearest neighbours: how far a row is, on average, from the nearest rows of a sample of those fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.blocks import by_blocks
from models.occ.flattening import choose_rows, flatten, whole_number, whole_tiles
from models.occ.gde import GDE
from models.state import State

BLOCK_ROWS = 32
"""Larger blocks gain a tenth for many rows, and make a single record as much dearer as they are larger."""
_GROUPS = (1, 2, 4, 8, 16)
"""Sizes of groups that divide the tiles of :func:`models.occ.flattening.whole_tiles`."""
_LARGEST = 1e12
"""Values are cut to this, so that squares of thousands of columns still fit into float32."""


class NeighbourSearch:
    """The `n_neighbors` nearest of fixed reference rows, by brute force made quick.

    The nearest are picked by |r|² - 2 z·r, from one matrix product; their distances are then computed from the
    differences, so that rounding cannot harm the small ones. The k least of N values are found in two heats: they are
    in the k groups with the least minima, so that few values are partitioned instead of N.

    Parameters
    ----------
    rows
        ``(r, d)`` references, centred on something near to their middle, float32 or float64: the precision of the
        search. Values beyond ±1e12 are cut.
    n_neighbors
        1 to r.
    """

    def __init__(self, rows: NDArray[Any], n_neighbors: int) -> None:
        self.rows = _cut(rows)
        self.n_neighbors = n_neighbors
        r = len(rows)
        self._minus_two_rows = whole_tiles(-2.0 * self.rows.T)
        # Of N / g groups and then k g values the least are found: together the fewest for g = √(N / k).
        self._group = min(_GROUPS, key=lambda size: abs(math.log(size / math.sqrt(r / n_neighbors))))
        self._n_groups = self._minus_two_rows.shape[1] // self._group
        # The rows that fill up the last tile are as far away as can be, and never among the nearest.
        self._squares = np.full(self._minus_two_rows.shape[1], np.finfo(rows.dtype).max, dtype=rows.dtype)
        self._squares[:r] = np.einsum("rd,rd->r", self.rows, self.rows)

    def nearest(self, Z: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[Any]]:
        """Return which rows are nearest to each of ``(n, d)`` and the differences to them.

        `Z` is centred like the rows, of their dtype, and cut.

        Returns
        -------
        neighbours : ``(n, k)`` numbers of rows, in no order.
        differences : ``(n, k, d)`` z - row.
        """
        k = self.n_neighbors
        relative = Z @ self._minus_two_rows
        relative += self._squares
        if self._group > 1 and self._n_groups > k:
            groups = np.argpartition(relative.reshape(len(Z), self._group, -1).min(axis=1), k - 1, axis=1)[:, :k]
            starts = np.arange(0, self._group * self._n_groups, self._n_groups)
            places = (groups[:, None, :] + starts[:, None]).reshape(len(Z), -1)
            heat = np.take_along_axis(relative, places, axis=1)
            best = np.argpartition(heat, k - 1, axis=1)[:, :k]
            neighbours = np.take_along_axis(places, best, axis=1)
        else:
            neighbours = np.argpartition(relative, k - 1, axis=1)[:, :k]
        return neighbours, Z[:, None, :] - self.rows[neighbours]


def centred(Z: NDArray[Any], centre: NDArray[np.float64], dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """Return Z - centre, subtracted in float64 before it is rounded, and cut to ±1e12."""
    return _cut(Z - centre).astype(dtype, copy=False)


def _cut(Z: NDArray[Any]) -> NDArray[Any]:
    cut: NDArray[Any] = np.clip(Z, -_LARGEST, _LARGEST)
    return cut


class KNN:
    """Mean distance to the nearest reference rows, in float32.

    Rows with a weight below 0.5 are left out of the fit; if fewer than two would remain, none is.

    Parameters
    ----------
    n_neighbors
        At least 1; capped at the number of reference rows. The larger, the smoother and the less it falls for small
        groups of equal anomalies. Several numbers: the mean of the scores with each.
    max_rows
        References, at least 1; if more are fitted, a sample. Time and memory of scoring grow with it.
    whitening
        None: Euclidean distances. A shrinkage a, 0 < a ≤ 1: Mahalanobis distances by the covariance of the rows, shrunk
        as :class:`models.occ.gde.GDE` does; then broken correlations count as much as far values.
    indicator_variance
        With `whitening`: see :class:`models.occ.gde.GDE`.
    seed
        Draws the sample.

    Examples
    --------
    >>> Z = np.random.default_rng(0).normal(size=(500, 3))
    >>> knn = KNN(n_neighbors=5).fit(Z)
    >>> bool(knn.score(np.full((1, 3), 5.0))[0] > knn.score(Z).max())
    True
    """

    name: ClassVar[str] = "knn"

    def __init__(
        self,
        *,
        n_neighbors: int | Sequence[int] = 10,
        max_rows: int = 2000,
        whitening: float | None = None,
        indicator_variance: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.n_neighbors = [
            whole_number("n_neighbors", k)
            for k in (n_neighbors if isinstance(n_neighbors, list | tuple) and n_neighbors else [n_neighbors])
        ]
        self.max_rows = whole_number("max_rows", max_rows)
        if whitening is not None and not 0.0 < whitening <= 1.0:
            raise ValueError(f"whitening is {whitening!r}; allowed: above 0, at most 1, or None")
        GDE(indicator_variance=indicator_variance)
        self.whitening = whitening
        self.indicator_variance = indicator_variance
        self.seed = whole_number("seed", seed, least=0)
        self.centre_: NDArray[np.float64] | None = None
        self.search_: NeighbourSearch | None = None
        self.metric_: NDArray[np.float64] | None = None
        self.shares_: NDArray[np.float64] = np.empty(0)

    def fit(self, Z: NDArray[Any], weights: NDArray[np.float64] | None = None) -> Self:
        """Keep a sample of ``(n, d)`` or ``(n, m, d)`` embeddings, n ≥ 1, stacked ones side by side."""
        rows, _ = choose_rows(len(Z), weights, max_rows=self.max_rows, seed=self.seed)
        Z = flatten(Z)
        reference = Z[rows].astype(np.float64)
        # The median, which a single wild row cannot move away from where precision is needed.
        centre = np.median(reference, axis=0)
        metric = None
        if self.whitening is not None:
            gde = GDE(shrinkage=self.whitening, indicator_variance=self.indicator_variance).fit(Z, weights)
            metric = gde.state().arrays["whiten"][0]
        return self._learn(centre, metric, _place(reference, centre, metric))

    def score(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return the mean distance of every row to its nearest references, ``(n,)``; higher is more anomalous.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        centre, search = self._fitted()

        def score_block(block: NDArray[Any]) -> NDArray[np.float64]:
            _, differences = search.nearest(_place(block, centre, self.metric_))
            score: NDArray[np.float64] = np.einsum("nk,k->n", np.sort(lengths(differences), axis=1), self.shares_)
            return score

        return by_blocks(score_block, flatten(Z), n_rows=BLOCK_ROWS)

    def gradient(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return d score / d Z, of the shape of `Z`: the mean unit vector from the nearest references to the row.

        A reference equal to the row adds nothing.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        centre, search = self._fitted()

        def gradient_block(block: NDArray[Any]) -> NDArray[np.float64]:
            _, differences = search.nearest(_place(block, centre, self.metric_))
            length = lengths(differences)
            shares = np.empty(length.shape)
            np.put_along_axis(shares, np.argsort(length, axis=1), self.shares_[None, :], axis=1)
            shares = np.divide(shares, length, out=np.zeros(length.shape), where=length > 0.0)
            gradient: NDArray[np.float64] = np.einsum("nkd,nk->nd", differences, shares)
            return gradient if self.metric_ is None else gradient @ self.metric_.T

        return by_blocks(gradient_block, flatten(Z), n_rows=BLOCK_ROWS).reshape(Z.shape)

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        centre, search = self._fitted()
        values = {
            "n_neighbors": self.n_neighbors,
            "max_rows": self.max_rows,
            "whitening": self.whitening,
            "indicator_variance": self.indicator_variance,
            "seed": self.seed,
        }
        metric = {} if self.metric_ is None else {"metric": self.metric_}
        return State(values, {"centre": centre, "rows": search.rows, **metric})

    @classmethod
    def from_state(cls, state: State) -> KNN:
        """Read what :meth:`state` returned; ValueError if shapes do not fit."""
        centre, rows = state.array("centre", 1), state.array("rows", 2)
        if not len(rows) or rows.shape[1:] != centre.shape:
            raise ValueError(f"rows {rows.shape} and centre {centre.shape} must agree, and there must be a row")
        knn = cls(**state.values)
        metric = None if knn.whitening is None else state.array("metric", 2)
        if metric is not None and metric.shape != (len(centre), len(centre)):
            raise ValueError(f"metric {metric.shape} and centre {centre.shape} must agree")
        return knn._learn(centre, metric, rows)

    def _learn(
        self, centre: NDArray[np.float64], metric: NDArray[np.float64] | None, rows: NDArray[np.float32]
    ) -> Self:
        self.centre_, self.metric_ = centre, metric
        scales = [min(k, len(rows)) for k in self.n_neighbors]
        self.search_ = NeighbourSearch(rows, max(scales))
        # What the r-th nearest counts: 1/k in the mean of the k nearest, averaged over the k.
        self.shares_ = np.mean([(np.arange(max(scales)) < k) / k for k in scales], axis=0)
        return self

    def _fitted(self) -> tuple[NDArray[np.float64], NeighbourSearch]:
        if self.centre_ is None or self.search_ is None:
            raise RuntimeError("KNN is not fitted; call fit first")
        return self.centre_, self.search_


def _place(Z: NDArray[Any], centre: NDArray[np.float64], metric: NDArray[np.float64] | None) -> NDArray[np.float32]:
    """Return ``(n, d)`` rows where the search has its references: centred, and whitened if there is a metric."""
    if metric is None:
        return centred(Z, centre, np.float32)
    white = centred(Z, centre, np.float64) @ whole_tiles(metric)
    return _cut(white[:, : len(centre)]).astype(np.float32)


def lengths(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """Return the Euclidean lengths of ``(n, k, d)`` vectors, ``(n, k)``."""
    squared: NDArray[np.float64] = np.einsum("nkd,nkd->nk", vectors, vectors).astype(np.float64)
    return np.sqrt(squared)
