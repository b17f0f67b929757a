"""Principal components, plain and robust: how far a row is from the subspace in which most of the fitted rows lie."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.blocks import by_blocks
from models.occ.flattening import ANY_WEIGHT, choose_rows, flatten, whole_number, whole_tiles
from models.occ.gde import VARIANCE_FLOOR, mean_and_covariance
from models.state import State

MEASURES = ("residual", "mahalanobis")
_GROWTH = 1.5
_TOLERANCE = 1e-6
_MAX_STEPS = 200


class PCA:
    """Squared distance from the principal subspace.

    A row counts as many times as its weight says.

    Parameters
    ----------
    n_components
        Dimensions of the subspace: a whole number from 1 on, or the share of the variance that it has to hold, above 0
        and below 1. At most d - 1, lest every row lie in it, and never more than the rows span. The larger, the more
        kinds of rows are normal.
    measure
        ``residual``, or ``mahalanobis``: in the subspace by the variances there, outside by the mean variance outside
        (probabilistic PCA; Tipping and Bishop 1999), which also sees rows far out in the subspace.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> Z = rng.normal(size=(500, 1)) * np.ones(3) + 0.1 * rng.normal(size=(500, 3))
    >>> pca = PCA(n_components=1).fit(Z)
    >>> bool(pca.score(np.array([[1.0, -1.0, 0.0]]))[0] > pca.score(Z).max())
    True
    """

    name: ClassVar[str] = "pca"

    def __init__(self, *, n_components: int | float = 0.5, measure: str = "residual") -> None:
        if isinstance(n_components, float):
            if not 0.0 < n_components < 1.0:
                raise ValueError(
                    f"n_components is {n_components!r}; allowed: whole numbers from 1 on, or above 0 and below 1"
                )
        else:
            n_components = whole_number("n_components", n_components)
        if measure not in MEASURES:
            raise ValueError(f"measure is {measure!r}; allowed: {', '.join(MEASURES)}")
        self.n_components = n_components
        self.measure = measure
        self.mean_: NDArray[np.float64] | None = None
        self.components_: NDArray[np.float64] | None = None
        self.variances_: NDArray[np.float64] | None = None

    def fit(self, Z: NDArray[Any], weights: NDArray[np.float64] | None = None) -> Self:
        """Fit to ``(n, d)`` or ``(n, m, d)`` embeddings, n ≥ 1; row i counts `weights` ``(n,)`` times."""
        rows, counts = choose_rows(len(Z), weights, least_weight=ANY_WEIGHT)
        Z = flatten(Z)
        Z = Z if len(rows) == len(Z) else Z[rows]
        mean, covariance = mean_and_covariance(Z[:, None, :], counts)
        values, vectors = np.linalg.eigh(covariance[0])
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        k = _dimensions(values, self.n_components)
        outside = max(float(values[k:].mean()), VARIANCE_FLOOR)
        self.mean_ = mean[0]
        self.components_ = np.ascontiguousarray(vectors[:, :k])
        self.variances_ = np.append(np.maximum(values[:k], VARIANCE_FLOOR), outside)
        return self

    def score(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return the `measure` of every row, ``(n,)``, from 0 on; higher is more anomalous.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        mean, components, variances = self._fitted()
        d, k = components.shape
        into = whole_tiles(components)
        back = whole_tiles(into.T)
        deviations = np.sqrt(variances[:-1])

        def score_block(block: NDArray[Any]) -> NDArray[np.float64]:
            rest = block - mean
            inside = rest @ into
            rest -= (inside @ back)[:, :d]
            residual: NDArray[np.float64] = np.einsum("nd,nd->n", rest, rest)
            if self.measure == "residual":
                return residual
            distance: NDArray[np.float64] = residual / variances[-1] + np.square(inside[:, :k] / deviations).sum(axis=1)
            return distance

        return by_blocks(score_block, flatten(Z))

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        mean, components, variances = self._fitted()
        values = {"n_components": self.n_components, "measure": self.measure}
        return State(values, {"mean": mean, "components": components, "variances": variances})

    @classmethod
    def from_state(cls, state: State) -> PCA:
        """Read what :meth:`state` returned; ValueError if shapes do not fit or a variance is not above 0."""
        pca = cls(**state.values)
        pca.mean_, pca.variances_ = state.array("mean", 1), state.array("variances", 1)
        pca.components_ = state.array("components", 2)
        d, k = pca.components_.shape
        if pca.mean_.shape != (d,) or pca.variances_.shape != (k + 1,):
            raise ValueError(f"components {(d, k)}, mean and variances must agree")
        if (pca.variances_ <= 0.0).any():
            raise ValueError("array 'variances' holds values of 0 or less; allowed: above 0")
        return pca

    def _fitted(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        if self.mean_ is None or self.components_ is None or self.variances_ is None:
            raise RuntimeError("PCA is not fitted; call fit first")
        return self.mean_, self.components_, self.variances_


class RobustPCA:
    """Squared distance from the principal subspace of what is left of the rows when sparse outliers are taken out.

    Candès, Li, Ma, Wright, "Robust Principal Component Analysis?" (2011): rows = low rank + sparse, see
    :func:`low_rank_and_sparse`; then :class:`PCA` of the low-rank part. Differs from the paper: columns are centred on
    their medians first. Rows with a weight below 0.5 are left out of the fit; if fewer than two would remain, none is.

    Parameters
    ----------
    n_components
        As of :class:`PCA`, out of the low-rank part. Of columns that hardly depend on each other that part is nothing:
        then the score is the squared distance from the medians.
    max_rows
        At least 1; if more are given, a sample is fitted. The time of the fit grows with it.
    seed
        Draws the sample.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> Z = rng.normal(size=(500, 1)) * np.ones(3) + 0.1 * rng.normal(size=(500, 3))
    >>> pca = RobustPCA(n_components=1).fit(Z)
    >>> bool(pca.score(np.array([[1.0, -1.0, 0.0]]))[0] > pca.score(Z).max())
    True
    """

    name: ClassVar[str] = "robust_pca"

    def __init__(self, *, n_components: int | float = 0.5, max_rows: int = 2000, seed: int = 0) -> None:
        self.pca = PCA(n_components=n_components)
        self.max_rows = whole_number("max_rows", max_rows)
        self.seed = whole_number("seed", seed, least=0)

    def fit(self, Z: NDArray[Any], weights: NDArray[np.float64] | None = None) -> Self:
        """Fit to ``(n, d)`` or ``(n, m, d)`` embeddings, n ≥ 1."""
        chosen, _ = choose_rows(len(Z), weights, max_rows=self.max_rows, seed=self.seed)
        rows = flatten(Z)[chosen].astype(np.float64)
        centre = np.median(rows, axis=0)
        low_rank, _ = low_rank_and_sparse(rows - centre)
        self.pca.fit(centre + low_rank)
        return self

    def score(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return the squared distance of every row, ``(n,)``; higher is more anomalous.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        self._check_is_fitted()
        return self.pca.score(Z)

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        self._check_is_fitted()
        values = {"n_components": self.pca.n_components, "max_rows": self.max_rows, "seed": self.seed}
        return State(values, self.pca.state().arrays)

    @classmethod
    def from_state(cls, state: State) -> RobustPCA:
        """Read what :meth:`state` returned; ValueError as of :meth:`PCA.from_state`."""
        robust = cls(**state.values)
        robust.pca = PCA.from_state(State({"n_components": robust.pca.n_components}, state.arrays))
        return robust

    def _check_is_fitted(self) -> None:
        if self.pca.mean_ is None:
            raise RuntimeError("RobustPCA is not fitted; call fit first")


def low_rank_and_sparse(M: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Split a matrix into a low-rank and a sparse one by principal component pursuit.

    Minimises |L|_* + λ |S|_1 subject to L + S = M, λ = 1 / √max(n, d) (Candès et al. 2011, equation 1.1 and section
    1.4), by the inexact augmented Lagrange multipliers of Lin, Chen, Ma, "The Augmented Lagrange Multiplier Method for
    Exact Recovery of Corrupted Low-Rank Matrices" (2010), algorithm 5, with its μ₀ = 1.25 / |M|₂ and ρ = 1.5.

    Parameters
    ----------
    M
        ``(n, d)``. A step costs n d min(n, d).

    Returns
    -------
    low_rank, sparse : ``(n, d)`` each; they sum to M within 1e-6 of its norm.
    """
    norm = np.linalg.norm(M)
    if norm == 0.0:
        return np.zeros_like(M), np.zeros_like(M)
    sparsity = 1.0 / np.sqrt(max(M.shape))
    spectral = float(np.sqrt(np.linalg.eigvalsh(_gram(M))[-1]))
    multiplier = M / max(spectral, np.abs(M).max() / sparsity)
    mu = 1.25 / spectral
    sparse = np.zeros_like(M)
    for _ in range(_MAX_STEPS):
        low_rank = _shrink_singular_values(M - sparse + multiplier / mu, 1.0 / mu)
        rest = M - low_rank + multiplier / mu
        sparse = np.sign(rest) * np.maximum(np.abs(rest) - sparsity / mu, 0.0)
        gap = M - low_rank - sparse
        if np.linalg.norm(gap) < _TOLERANCE * norm:
            break
        multiplier += mu * gap
        mu *= _GROWTH
    return low_rank, sparse


def _gram(M: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the smaller of M Mᵀ and Mᵀ M, whose eigenvalues are the squared singular values."""
    return M @ M.T if len(M) < M.shape[1] else M.T @ M


def _shrink_singular_values(M: NDArray[np.float64], by: float) -> NDArray[np.float64]:
    # From the Gram matrix, far cheaper than a decomposition of M; the small values it blurs are the ones that go.
    values, vectors = np.linalg.eigh(_gram(M))
    singular = np.sqrt(np.maximum(values, 0.0))
    is_left = singular > by
    vectors = vectors[:, is_left]
    projection = (vectors * (1.0 - by / singular[is_left])) @ vectors.T
    shrunk: NDArray[np.float64] = projection @ M if len(M) < M.shape[1] else M @ projection
    return shrunk


def _dimensions(variances: NDArray[np.float64], n_components: int | float) -> int:
    """Return the dimension of the subspace from all variances ``(d,)``, falling."""
    total = variances.sum()
    rank = int((variances > np.finfo(np.float64).eps * len(variances) * variances[0]).sum())
    most = min(rank, len(variances) - 1)
    if isinstance(n_components, int):
        return min(n_components, most)
    return min(int(np.searchsorted(np.cumsum(variances), n_components * total)) + 1, most)
