"""The local outlier factor: how much sparser it is around a row than around its neighbours."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.blocks import by_blocks
from models.occ.flattening import choose_rows, flatten, whole_number
from models.occ.knn import BLOCK_ROWS, NeighbourSearch, centred, lengths
from models.state import State

_LEAST_REACH = 1e-10
"""scikit-learn's: keeps the density of rows with more than `n_neighbors` equals finite."""


class LOF:
    """Mean local reachability density of the nearest reference rows over the row's own.

    Breunig, Kriegel, Ng, Sander, "LOF: Identifying Density-Based Local Outliers" (2000), definitions 5 to 7; the scores
    of scikit-learn's ``LocalOutlierFactor(novelty=True)``. Near groups of more than `n_neighbors` equal rows scores are
    huge. Rows with a weight below 0.5 are left out of the fit; if fewer than two would remain, none is.

    Parameters
    ----------
    n_neighbors
        At least 1; capped at one less than the number of reference rows. The larger, the less local.
    max_rows
        References, at least 2; if more are fitted, a sample. Time and memory of scoring grow with it, those of the fit
        with its square.
    seed
        Draws the sample.

    Examples
    --------
    >>> Z = np.random.default_rng(0).normal(size=(500, 3))
    >>> lof = LOF().fit(Z)
    >>> bool(lof.score(np.full((1, 3), 5.0))[0] > lof.score(Z).max())
    True
    """

    name: ClassVar[str] = "lof"

    def __init__(self, *, n_neighbors: int = 20, max_rows: int = 5000, seed: int = 0) -> None:
        self.n_neighbors = whole_number("n_neighbors", n_neighbors)
        self.max_rows = whole_number("max_rows", max_rows, least=2)
        self.seed = whole_number("seed", seed, least=0)
        self.centre_: NDArray[np.float64] | None = None
        self.search_: NeighbourSearch | None = None
        self.reach_: NDArray[np.float64] | None = None
        self.density_: NDArray[np.float64] | None = None

    def fit(self, Z: NDArray[Any], weights: NDArray[np.float64] | None = None) -> Self:
        """Keep a sample of ``(n, d)`` or ``(n, m, d)`` embeddings, n ≥ 1, and how dense it is around each row."""
        chosen, _ = choose_rows(len(Z), weights, max_rows=self.max_rows, seed=self.seed)
        rows = flatten(Z)[chosen].astype(np.float64)
        centre = np.median(rows, axis=0)
        rows = centred(rows, centre, np.float64)
        if len(rows) == 1:
            rows = np.repeat(rows, 2, axis=0)  # a lone row has no neighbour; two equal ones are each other's
        k = min(self.n_neighbors, len(rows) - 1)
        neighbours, distances = _others(rows, k)
        self.centre_ = centre
        self.search_ = NeighbourSearch(rows, k)
        self.reach_ = distances.max(axis=1)
        self.density_ = _density(distances, self.reach_[neighbours])
        return self

    def score(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return the local outlier factor of every row, ``(n,)``, about 1 amid others; higher is more anomalous.

        Rows are taken for new ones: a fitted row is its own neighbour.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        centre, search, reach, density = self._fitted()

        def score_block(block: NDArray[Any]) -> NDArray[np.float64]:
            neighbours, distances = _nearest(search, centred(block, centre, np.float64))
            factor: NDArray[np.float64] = density[neighbours].mean(axis=1) / _density(distances, reach[neighbours])
            return factor

        return by_blocks(score_block, flatten(Z), n_rows=BLOCK_ROWS)

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        centre, search, reach, density = self._fitted()
        values = {"n_neighbors": self.n_neighbors, "max_rows": self.max_rows, "seed": self.seed}
        return State(values, {"centre": centre, "rows": search.rows, "reach": reach, "density": density})

    @classmethod
    def from_state(cls, state: State) -> LOF:
        """Read what :meth:`state` returned; ValueError if shapes do not fit."""
        lof = cls(**state.values)
        rows = state.array("rows", 2)
        lof.centre_, lof.reach_, lof.density_ = (state.array(name, 1) for name in ("centre", "reach", "density"))
        n, d = rows.shape
        if n < 2 or lof.centre_.shape != (d,) or lof.reach_.shape != (n,) or lof.density_.shape != (n,):
            raise ValueError(f"rows {(n, d)}, centre, reach and density must agree, and there must be two rows")
        lof.search_ = NeighbourSearch(rows, min(lof.n_neighbors, n - 1))
        return lof

    def _fitted(self) -> tuple[NDArray[np.float64], NeighbourSearch, NDArray[np.float64], NDArray[np.float64]]:
        if self.centre_ is None or self.search_ is None or self.reach_ is None or self.density_ is None:
            raise RuntimeError("LOF is not fitted; call fit first")
        return self.centre_, self.search_, self.reach_, self.density_


def _nearest(search: NeighbourSearch, Z: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the numbers of the nearest rows and the distances to them, ``(n, k)`` each."""
    neighbours, differences = search.nearest(Z)
    return neighbours, lengths(differences)


def _others(rows: NDArray[np.float64], k: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the k nearest *other* rows of every row and the distances to them, ``(n, k)`` each."""
    search = NeighbourSearch(rows, k + 1)
    parts = [_nearest(search, rows[start : start + BLOCK_ROWS]) for start in range(0, len(rows), BLOCK_ROWS)]
    neighbours, distances = (np.concatenate(part) for part in zip(*parts, strict=True))
    is_own = neighbours == np.arange(len(rows))[:, None]
    # Among many equal rows a row may not be found itself; then one of its equals goes.
    is_lost = ~is_own.any(axis=1)
    is_own[is_lost, distances[is_lost].argmin(axis=1)] = True
    return neighbours[~is_own].reshape(-1, k), distances[~is_own].reshape(-1, k)


def _density(distances: NDArray[np.float64], reach: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the local reachability density ``(n,)`` from distances to k rows and the reach of those, ``(n, k)``."""
    density: NDArray[np.float64] = 1.0 / (np.maximum(distances, reach).mean(axis=1) + _LEAST_REACH)
    return density
