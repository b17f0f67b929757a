"""Kernel density estimation: how unlikely a row is under a Gaussian on each of a sample of the fitted rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.blocks import by_blocks
from models.occ.flattening import ANY_WEIGHT, choose_rows, flatten, whole_number, whole_tiles
from models.occ.gde import VARIANCE_FLOOR
from models.state import State

BLOCK_ROWS = 32
"""Small, since a single record pays for a whole block of distances to every reference."""
BANDWIDTHS = ("scott", "scale")


def squared_distances_to(rows: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the function from ``(n, d)`` to their squared distances ``(n, r)`` to ``(r, d)``.

    Both have to be centred: large offsets cost digits.
    """
    minus_two_rows = whole_tiles(-2.0 * rows.T)
    squares = np.einsum("rd,rd->r", rows, rows)

    def squared_distances(Z: NDArray[np.float64]) -> NDArray[np.float64]:
        squared: NDArray[np.float64] = (Z @ minus_two_rows)[:, : len(rows)]
        squared += np.einsum("nd,nd->n", Z, Z)[:, None]
        squared += squares
        return np.maximum(squared, 0.0, out=squared)

    return squared_distances


class KDE:
    """Negative log density under equal round Gaussians on at most `max_rows` of the fitted rows.

    A row counts as many times as its weight says.

    Parameters
    ----------
    bandwidth
        Standard deviation of a Gaussian, above 0; or how it is found from the mean variance v of the d columns:
        ``scale`` takes √(v d / 20), that is γ = 10 / (v d), as Sohn et al., "Learning and Evaluating Representations
        for Deep One-Class Classification" (2021) do; ``scott`` takes √v n^(-1 / (d + 4)) (Scott 1992), n the sum of
        weights. The larger, the smoother.
    max_rows
        References, at least 1; if more are fitted, a sample. Time and memory of scoring grow with it.
    seed
        Draws the sample.

    Examples
    --------
    >>> Z = np.random.default_rng(0).normal(size=(500, 3))
    >>> kde = KDE().fit(Z)
    >>> bool(kde.score(np.full((1, 3), 5.0))[0] > kde.score(Z).max())
    True
    """

    name: ClassVar[str] = "kde"

    def __init__(self, *, bandwidth: str | float = "scale", max_rows: int = 2000, seed: int = 0) -> None:
        is_allowed = bandwidth in BANDWIDTHS if isinstance(bandwidth, str) else 0.0 < bandwidth < np.inf
        if not is_allowed:
            raise ValueError(f"bandwidth is {bandwidth!r}; allowed: {', '.join(BANDWIDTHS)} or a number above 0")
        self.bandwidth = bandwidth
        self.max_rows = whole_number("max_rows", max_rows)
        self.seed = whole_number("seed", seed, least=0)
        self.centre_: NDArray[np.float64] | None = None
        self.rows_: NDArray[np.float64] | None = None
        self.log_shares_: NDArray[np.float64] | None = None
        self.bandwidth_: float | None = None

    def fit(self, Z: NDArray[Any], weights: NDArray[np.float64] | None = None) -> Self:
        """Keep a sample of ``(n, d)`` or ``(n, m, d)`` embeddings, n ≥ 1; row i counts `weights` ``(n,)`` times."""
        chosen, counts = choose_rows(len(Z), weights, least_weight=ANY_WEIGHT, max_rows=self.max_rows, seed=self.seed)
        rows = flatten(Z)[chosen].astype(np.float64)
        shares = counts / counts.sum()
        self.centre_ = shares @ rows
        self.rows_ = rows - self.centre_
        self.log_shares_ = np.log(shares)
        self.bandwidth_ = self._find_bandwidth(shares @ np.square(self.rows_), float(counts.sum()))
        return self

    def score(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return the negative log density of every row, ``(n,)``; higher is more anomalous, and grows without end.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        centre, rows, log_shares, bandwidth = self._fitted()
        squared_distances = squared_distances_to(rows)
        log_norm = 0.5 * rows.shape[1] * np.log(2.0 * np.pi * bandwidth**2)

        def score_block(block: NDArray[Any]) -> NDArray[np.float64]:
            logs = squared_distances(block - centre)
            logs *= -0.5 / bandwidth**2
            logs += log_shares
            # The largest term is taken out, since all of them underflow far away.
            largest = logs.max(axis=1)
            logs -= largest[:, None]
            score: NDArray[np.float64] = log_norm - largest - np.log(np.exp(logs, out=logs).sum(axis=1))
            return score

        return by_blocks(score_block, flatten(Z), n_rows=BLOCK_ROWS)

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        centre, rows, log_shares, bandwidth = self._fitted()
        values = {"bandwidth": self.bandwidth, "max_rows": self.max_rows, "seed": self.seed}
        arrays = {"centre": centre, "rows": rows, "log_shares": log_shares, "bandwidth": np.array([bandwidth])}
        return State(values, arrays)

    @classmethod
    def from_state(cls, state: State) -> KDE:
        """Read what :meth:`state` returned; ValueError if shapes do not fit or the bandwidth is not above 0."""
        kde = cls(**state.values)
        kde.centre_, kde.rows_ = state.array("centre", 1), state.array("rows", 2)
        kde.log_shares_ = state.array("log_shares", 1)
        bandwidth = state.array("bandwidth", 1)
        n, d = kde.rows_.shape
        if not n or kde.centre_.shape != (d,) or kde.log_shares_.shape != (n,):
            raise ValueError(f"rows {(n, d)}, centre and log_shares must agree, and there must be a row")
        if bandwidth.shape != (1,) or bandwidth[0] <= 0.0:
            raise ValueError(f"array 'bandwidth' is {bandwidth}; allowed: one number above 0")
        kde.bandwidth_ = float(bandwidth[0])
        return kde

    def _find_bandwidth(self, variances: NDArray[np.float64], n: float) -> float:
        d = len(variances)
        variance = max(float(variances.mean()), VARIANCE_FLOOR)
        if self.bandwidth == "scale":
            return float(np.sqrt(variance * d / 20.0))
        if self.bandwidth == "scott":
            return float(np.sqrt(variance) * n ** (-1.0 / (d + 4)))
        return float(self.bandwidth)

    def _fitted(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
        if self.centre_ is None or self.rows_ is None or self.log_shares_ is None or self.bandwidth_ is None:
            raise RuntimeError("KDE is not fitted; call fit first")
        return self.centre_, self.rows_, self.log_shares_, self.bandwidth_
