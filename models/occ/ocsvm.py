"""The one-class support vector machine with a Gaussian kernel: fitted by scikit-learn, remembered as arrays."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.blocks import by_blocks
from models.occ.flattening import ANY_WEIGHT, choose_rows, flatten, whole_number
from models.occ.kde import BLOCK_ROWS, squared_distances_to
from models.state import State


class OCSVM:
    """ρ - Σ α k(z, v) over the support vectors v, with k(z, v) = exp(-γ |z - v|²).

    Schölkopf, Platt, Shawe-Taylor, Smola, Williamson, "Estimating the Support of a High-Dimensional Distribution"
    (2001). A row counts as many times as its weight says. Far from all support vectors the score is ρ, however far.

    Parameters
    ----------
    nu
        ν, 0 < ν ≤ 1: at most this share of the fitted rows is outside, at least this share are support vectors.
    gamma
        γ, above 0; ``scale`` takes 1 / (d v), v the variance of all values. The larger, the closer to the rows.
    max_rows
        At least 1; if more are given, a sample is fitted. The time of the fit grows with its square.
    seed
        Draws the sample.

    Examples
    --------
    >>> Z = np.random.default_rng(0).normal(size=(500, 3))
    >>> svm = OCSVM().fit(Z)
    >>> bool(svm.score(np.full((1, 3), 5.0))[0] > svm.score(Z).max())
    True
    """

    name: ClassVar[str] = "ocsvm"

    def __init__(self, *, nu: float = 0.1, gamma: str | float = "scale", max_rows: int = 5000, seed: int = 0) -> None:
        if not 0.0 < nu <= 1.0:
            raise ValueError(f"nu is {nu!r}; allowed: above 0, at most 1")
        if not (gamma == "scale" if isinstance(gamma, str) else 0.0 < gamma < np.inf):
            raise ValueError(f"gamma is {gamma!r}; allowed: scale or a number above 0")
        self.nu = nu
        self.gamma = gamma
        self.max_rows = whole_number("max_rows", max_rows)
        self.seed = whole_number("seed", seed, least=0)
        self.centre_: NDArray[np.float64] | None = None
        self.support_: NDArray[np.float64] | None = None
        self.alpha_: NDArray[np.float64] | None = None
        self.rho_and_gamma_: NDArray[np.float64] | None = None

    def fit(self, Z: NDArray[Any], weights: NDArray[np.float64] | None = None) -> Self:
        """Fit to ``(n, d)`` or ``(n, m, d)`` embeddings, n ≥ 1; row i counts `weights` ``(n,)`` times."""
        chosen, counts = choose_rows(len(Z), weights, least_weight=ANY_WEIGHT, max_rows=self.max_rows, seed=self.seed)
        rows = flatten(Z)[chosen].astype(np.float64)
        share = counts / counts.sum()
        gamma = self.gamma
        if isinstance(gamma, str):
            variance = float((share @ np.square(rows - (share @ rows).mean())).mean())
            gamma = 1.0 / (rows.shape[1] * variance) if variance > 0.0 else 1.0
        # The kernel does not mind an offset, but its distances lose digits to one.
        centre = share @ rows
        from sklearn.svm import OneClassSVM

        svm = OneClassSVM(kernel="rbf", nu=self.nu, gamma=gamma).fit(rows - centre, sample_weight=counts)
        self.centre_ = centre
        self.support_ = np.array(svm.support_vectors_, dtype=np.float64, order="C")
        self.alpha_ = np.array(svm.dual_coef_[0], dtype=np.float64)
        self.rho_and_gamma_ = np.array([-svm.intercept_[0], gamma])
        return self

    def score(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return how far outside every row is, ``(n,)``, negative inside; higher is more anomalous.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        centre, support, alpha, (rho, gamma) = self._fitted()
        squared_distances = squared_distances_to(support)

        def score_block(block: NDArray[Any]) -> NDArray[np.float64]:
            kernel = squared_distances(block - centre)
            kernel *= -gamma
            np.exp(kernel, out=kernel)
            kernel *= alpha
            score: NDArray[np.float64] = rho - kernel.sum(axis=1)
            return score

        return by_blocks(score_block, flatten(Z), n_rows=BLOCK_ROWS)

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        centre, support, alpha, rho_and_gamma = self._fitted()
        values = {"nu": self.nu, "gamma": self.gamma, "max_rows": self.max_rows, "seed": self.seed}
        arrays = {"centre": centre, "support": support, "alpha": alpha, "rho_and_gamma": rho_and_gamma}
        return State(values, arrays)

    @classmethod
    def from_state(cls, state: State) -> OCSVM:
        """Read what :meth:`state` returned; ValueError if shapes do not fit."""
        svm = cls(**state.values)
        svm.centre_, svm.support_ = state.array("centre", 1), state.array("support", 2)
        svm.alpha_, svm.rho_and_gamma_ = state.array("alpha", 1), state.array("rho_and_gamma", 1)
        n, d = svm.support_.shape
        if svm.centre_.shape != (d,) or svm.alpha_.shape != (n,) or svm.rho_and_gamma_.shape != (2,):
            raise ValueError(f"support {(n, d)}, centre, alpha and rho_and_gamma must agree")
        return svm

    def _fitted(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        if self.centre_ is None or self.support_ is None or self.alpha_ is None or self.rho_and_gamma_ is None:
            raise RuntimeError("OCSVM is not fitted; call fit first")
        return self.centre_, self.support_, self.alpha_, self.rho_and_gamma_
