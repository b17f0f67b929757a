"""The Gaussian density estimator, one or several at once: how unlikely a row is under a multivariate normal.

Functions first, a thin class after. Several Gaussians at once are those of a representation with m transformations.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.blocks import BLOCK_ROWS, by_blocks
from models.occ.flattening import choose_rows
from models.state import State

VARIANCE_FLOOR = 1e-6
"""The least mean variance that shrinkage starts from, so that equal rows can be fitted; scikit-learn's own ridge."""
_FIT_ROWS = 256
_ORIGIN_ROWS = 63
_FLAT_BLOCK_ROWS = 512
"""Of rows under one Gaussian, which are narrow: what a call costs is spread over more of them."""
_MAX_FLATNESS = 1e3
"""Beyond it a product of float32 could miss a score by more than a thousandth."""
COVARIANCES = ("shrunk", "empirical", "ledoit_wolf", "robust")
AGGREGATES: dict[str, Callable[..., NDArray[np.float64]]] = {"mean": np.mean, "median": np.median}


def mean_and_covariance(
    Z: NDArray[Any], weights: NDArray[np.float64] | None = None, rows: NDArray[np.intp] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weighted mean ``(m, d)`` and covariance ``(m, d, d)``, divided by the sum of weights, in one pass.

    Counts, sums and products are taken about a point in the midst of the rows, a median of a few, so that what is
    subtracted in the end is small beside what is left.

    Parameters
    ----------
    Z
        ``(n, m, d)``, which is read in slices: nothing of its size is copied.
    weights
        ``(n,)`` from 0 on; None: all 1.
    rows
        Which rows count, ``(r,)``; None: all. Spares the copy that ``Z[rows]`` is.
    """
    _, m, d = Z.shape
    if weights is not None and not weights.all():
        rows = np.flatnonzero(weights) if rows is None else rows[weights[rows] > 0.0]
    n = len(Z) if rows is None else len(rows)
    starts = range(0, n, _FIT_ROWS)
    parts = [slice(start, start + _FIT_ROWS) if rows is None else rows[start : start + _FIT_ROWS] for start in starts]
    few = np.linspace(0, n - 1, min(n, _ORIGIN_ROWS)).astype(np.intp)
    origin = np.median(Z[few if rows is None else rows[few]], axis=0).astype(np.float64)
    total, sums, products = 0.0, np.zeros(m * d), np.zeros((m, d, d))
    memory = np.empty((min(n, _FIT_ROWS), m, d))
    for part in parts:
        those = Z[part]
        centered = memory[: len(those)]
        centered[:] = those
        centered -= origin
        weight = np.ones(len(centered)) if weights is None else weights[part]
        total += float(weight.sum())
        sums += weight @ centered.reshape(-1, m * d)
        if weights is not None:
            centered *= np.sqrt(weight)[:, None, None]
        stack = np.ascontiguousarray(centered.transpose(1, 0, 2))  # products of strided matrices take twice as long
        # Of one matrix with itself BLAS makes half a product, and mirrors it.
        products += stack[0].T @ stack[0] if m == 1 else np.matmul(stack.transpose(0, 2, 1), stack)
    shift = sums.reshape(m, d) / total
    return origin + shift, products / total - shift[:, :, None] * shift[:, None, :]


def shrink(covariance: NDArray[np.float64], shrinkage: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Return (1 - a) S + a tr(S)/d I for ``(m, d, d)`` matrices and one a, or one for each matrix."""
    d = covariance.shape[-1]
    level = np.maximum(np.trace(covariance, axis1=-2, axis2=-1) / d, VARIANCE_FLOOR)
    a = np.broadcast_to(shrinkage, level.shape)[:, None, None]
    shrunk: NDArray[np.float64] = (1.0 - a) * covariance + a * level[:, None, None] * np.eye(d)
    return shrunk


def whitening(covariance: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return W ``(m, d, d)`` with W Wᵀ = S⁻¹ and log det S ``(m,)``, from eigenvalues: nothing is inverted."""
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, np.finfo(np.float64).eps * values[:, -1:])
    return vectors / np.sqrt(values)[:, None, :], np.log(values).sum(axis=-1)


def score_together(gdes: Sequence[GDE], Z: NDArray[Any]) -> NDArray[np.float64]:
    """Return the scores of ``(n, d)`` or ``(n, m, d)`` embeddings by K fitted GDEs of one aggregate, ``(K, n)``.

    For each Gaussian the score is -log N(z; mean, S). The embeddings are whitened for all K by one product of matrices,
    of float32 if they are that and no Gaussian is so flat that it would matter: it is twice as fast, and to the vote of
    an ensemble the seventh digit of a score makes no difference.
    """
    means, whitens, log_dets = (np.array(arrays) for arrays in zip(*[gde._fitted() for gde in gdes], strict=True))
    n_gdes, m, d = means.shape
    origin = means.mean(axis=0)
    whiten = np.ascontiguousarray(whitens.transpose(1, 2, 0, 3).reshape(m, d, n_gdes * d))
    offsets = np.einsum("kmd,kmde->mke", means - origin, whitens).reshape(m, 1, n_gdes * d)
    if Z.dtype == np.float32 and _flatness(whitens) < _MAX_FLATNESS:
        origin, whiten, offsets = (array.astype(np.float32) for array in (origin, whiten, offsets))
    return _score(Z, origin, whiten, offsets, log_dets, gdes[0].aggregate)


def _flatness(whiten: NDArray[np.float64]) -> float:
    """Return the greatest ratio of two deviations along the axes of one Gaussian; W has their inverses as lengths."""
    lengths = np.sqrt(np.square(whiten).sum(axis=-2))
    return float((lengths.max(axis=-1) / lengths.min(axis=-1)).max())


def _score(
    Z: NDArray[Any],
    origin: NDArray[Any],
    whiten: NDArray[Any],
    offsets: NDArray[Any] | None,
    log_dets: NDArray[np.float64],
    aggregate: str,
) -> NDArray[np.float64]:
    """Return the scores ``(K, n)`` by K x m Gaussians whose W ``(m, d, K d)`` lie side by side, in W's precision.

    White rows are (z - `origin`) W - `offsets`: ``(m, d)``, and ``(m, 1, K d)`` or None if `origin` is every mean.
    """
    n_gdes, (m, d) = len(log_dets), origin.shape
    constants = 0.5 * (log_dets + d * np.log(2.0 * np.pi))
    n_rows = BLOCK_ROWS if m > 1 else _FLAT_BLOCK_ROWS
    if offsets is not None:
        offsets = np.repeat(offsets, n_rows, axis=1)  # to subtract short rows over and over takes three times as long

    def score_block(block: NDArray[Any]) -> NDArray[np.float64]:
        centered = np.subtract(block.reshape(len(block), m, d), origin, dtype=origin.dtype)
        white = np.matmul(centered.transpose(1, 0, 2), whiten)
        if offsets is not None:
            white -= offsets
        np.square(white, out=white)
        if aggregate == "mean":
            squared = white.sum(axis=0).reshape(-1, n_gdes, d).sum(axis=2) / m
            score: NDArray[np.float64] = 0.5 * squared + constants.mean(axis=1)
            return score
        squared = white.reshape(m, -1, n_gdes, d).sum(axis=3)
        return AGGREGATES[aggregate](0.5 * squared + constants.T[:, None, :], axis=0)

    return by_blocks(score_block, Z, n_rows=n_rows).T


class GDE:
    """Gaussian density estimator with relative shrinkage.

    Parameters
    ----------
    shrinkage
        a of (1 - a) S + a tr(S)/d I, 0 < a ≤ 1. The larger, the less a column that hardly varies counts. With fewer
        than ten rows for each dimension the Ledoit-Wolf estimate is taken where it is larger.
    indicator_variance
        Added to columns of zeros and ones, ≥ 0. One that hardly varies would else outweigh all others where it does.
    covariance
        ``shrunk``: as above. ``empirical``: S itself, singular directions floored at the precision of float64.
        ``ledoit_wolf``: a by Ledoit and Wolf (2004), whatever `shrinkage` is. ``robust``: S and the mean of the most
        compact half of the rows (minimum covariance determinant, Rousseeuw and van Driessen 1999), then as ``shrunk``;
        slow, and rows with a weight below 0.5 are left out.
    seed
        Of the robust search.
    aggregate
        How the negative log densities under m transformations become one score: ``mean`` or ``median``.

    Examples
    --------
    >>> Z = np.random.default_rng(0).normal(size=(500, 3))
    >>> gde = GDE().fit(Z)
    >>> bool(gde.score(np.full((1, 3), 5.0))[0] > gde.score(Z).max())
    True
    """

    name: ClassVar[str] = "gde"

    def __init__(
        self,
        *,
        shrinkage: float = 1e-3,
        indicator_variance: float = 0.0,
        aggregate: str = "mean",
        covariance: str = "shrunk",
        seed: int = 0,
    ) -> None:
        if not 0.0 < shrinkage <= 1.0:
            raise ValueError(f"shrinkage is {shrinkage!r}; allowed: above 0, at most 1")
        if not 0.0 <= indicator_variance < np.inf:
            raise ValueError(f"indicator_variance is {indicator_variance!r}; allowed: from 0 on")
        if aggregate not in AGGREGATES:
            raise ValueError(f"aggregate is {aggregate!r}; allowed: {', '.join(AGGREGATES)}")
        if covariance not in COVARIANCES:
            raise ValueError(f"covariance is {covariance!r}; allowed: {', '.join(COVARIANCES)}")
        self.shrinkage = shrinkage
        self.indicator_variance = indicator_variance
        self.aggregate = aggregate
        self.covariance = covariance
        self.seed = seed
        self.mean_: NDArray[np.float64] | None = None
        self.whiten_: NDArray[np.float64] | None = None
        self.log_det_: NDArray[np.float64] | None = None

    def fit(
        self,
        Z: NDArray[Any],
        weights: NDArray[np.float64] | None = None,
        *,
        rows: NDArray[np.intp] | None = None,
    ) -> Self:
        """Fit to ``(n, d)`` or ``(n, m, d)`` embeddings, n ≥ 1, of which row i counts `weights` ``(n,)`` times.

        Of all but the given `rows` ``(r,)`` nothing is seen, as if it were ``fit(Z[rows], weights[rows])``, without
        those copies.
        """
        Z = Z[:, None, :] if Z.ndim == 2 else Z
        if weights is not None and not (weights if rows is None else weights[rows]).any():
            weights = None
        d = Z.shape[2]
        n = len(Z) if rows is None else len(rows)
        is_robust = self.covariance == "robust" and n > d + 1
        is_ledoit_wolf = self.covariance == "ledoit_wolf" or (self.covariance != "empirical" and n < 10 * d)
        if rows is not None and (is_robust or is_ledoit_wolf or self.indicator_variance):
            Z, weights, rows = Z[rows], None if weights is None else weights[rows], None
        if is_robust:
            chosen, _ = choose_rows(n, weights)
            mean, covariance = _robust(_stacked(Z[chosen]), self.seed)
        else:
            mean, covariance = mean_and_covariance(Z, weights, rows)
        a: NDArray[np.float64] | float = 0.0 if self.covariance == "empirical" else self.shrinkage
        if is_ledoit_wolf:
            least = 0.0 if self.covariance == "ledoit_wolf" else self.shrinkage
            a = np.array([max(least, _ledoit_wolf(each)) for each in _stacked(Z)])
        covariance = shrink(covariance, a)
        if self.indicator_variance:
            covariance[:, np.arange(d), np.arange(d)] += self.indicator_variance * indicators(Z)
        self.mean_ = mean
        self.whiten_, self.log_det_ = whitening(covariance)
        return self

    def score(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return the negative log density of every row, ``(n,)``; higher is more anomalous.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        mean, whiten, log_det = self._fitted()
        score: NDArray[np.float64] = _score(Z, mean, whiten, None, log_det[None], self.aggregate)[0]
        return score

    def gradient(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return d score / d Z, of the shape of `Z`: S⁻¹ (z - mean) of every Gaussian, as the aggregate weighs them.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        mean, whiten, log_det = self._fitted()
        m = len(mean)
        precision = np.matmul(whiten, whiten.transpose(0, 2, 1))
        if self.aggregate == "mean":
            precision /= m

        def gradient_block(block: NDArray[Any]) -> NDArray[np.float64]:
            stack = _stacked(block)
            stack -= mean[:, None, :]
            pulls = np.matmul(stack, precision)
            if self.aggregate != "mean":
                white = np.matmul(stack, whiten)
                density = 0.5 * (np.square(white).sum(axis=2) + log_det[:, None])
                order = np.argsort(density, axis=0, kind="stable")
                share = np.zeros(order.shape)
                for middle in ((m - 1) // 2, m // 2):
                    share[order[middle], np.arange(len(block))] += 0.5
                pulls *= share[:, :, None]
            gradient: NDArray[np.float64] = pulls.transpose(1, 0, 2).reshape(block.shape)
            return gradient

        return by_blocks(gradient_block, Z)

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        mean, whiten, log_det = self._fitted()
        values = {
            "shrinkage": self.shrinkage,
            "indicator_variance": self.indicator_variance,
            "aggregate": self.aggregate,
            "covariance": self.covariance,
            "seed": self.seed,
        }
        return State(values, {"mean": mean, "whiten": whiten, "log_det": log_det})

    @classmethod
    def from_state(cls, state: State) -> GDE:
        """Read what :meth:`state` returned; ValueError if shapes do not fit."""
        gde = cls(**state.values)
        gde.mean_ = state.array("mean", 2)
        gde.whiten_ = state.array("whiten", 3)
        gde.log_det_ = state.array("log_det", 1)
        m, d = gde.mean_.shape
        if gde.whiten_.shape != (m, d, d) or gde.log_det_.shape != (m,):
            raise ValueError(f"mean {gde.mean_.shape}, whiten {gde.whiten_.shape} and log_det must agree")
        return gde

    def _fitted(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        if self.mean_ is None or self.whiten_ is None or self.log_det_ is None:
            raise RuntimeError("GDE is not fitted; call fit first")
        return self.mean_, self.whiten_, self.log_det_


def _stacked(Z: NDArray[Any]) -> NDArray[np.float64]:
    """Return ``(n, d)`` or ``(n, m, d)`` as ``(m, n, d)`` float64 in memory order."""
    stack = Z[None] if Z.ndim == 2 else Z.transpose(1, 0, 2)
    return np.array(stack, dtype=np.float64, order="C")


def indicators(Z: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which columns of ``(n, m, d)`` hold zeros and ones, and nothing else, ``(m, d)``."""
    is_indicator: NDArray[np.bool_] = (Z.min(axis=0) == 0.0) & (Z.max(axis=0) == 1.0)
    for start in range(0, len(Z), _FLAT_BLOCK_ROWS):
        if not is_indicator.any():
            break
        rows = Z[start : start + _FLAT_BLOCK_ROWS]
        is_indicator &= ((rows == 0.0) | (rows == 1.0)).all(axis=0)
    return is_indicator


def _ledoit_wolf(rows: NDArray[np.float64]) -> float:
    """Return Ledoit and Wolf's (2004) shrinkage of ``(n, d)`` rows; 1.0 for a single row, of which nothing is known."""
    if len(rows) < 2 or not np.ptp(rows, axis=0).any():
        return 1.0
    from sklearn.covariance import ledoit_wolf_shrinkage  # seconds to import, and whoever scores does not need it

    return float(ledoit_wolf_shrinkage(rows))


def _robust(stack: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean ``(m, d)`` and covariance ``(m, d, d)`` of the most compact half of ``(m, n, d)``."""
    from sklearn.covariance import MinCovDet

    with warnings.catch_warnings():
        # Columns that hardly vary make the determinant 0; shrinkage comes after.
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        fits = [MinCovDet(random_state=seed).fit(rows) for rows in stack]
    return np.array([fit.location_ for fit in fits]), np.array([fit.covariance_ for fit in fits])
