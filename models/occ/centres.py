"""GOAD's own classifier: can it be told, by the nearest centre, which transformation a row went through?"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.blocks import by_blocks
from models.occ.flattening import ANY_WEIGHT, choose_rows, whole_tiles
from models.state import State

_BLOCK_ROWS = 16
"""A row has m² distances, so that blocks of 128 rows would leave the cache for 256 transformations."""


class Centres:
    """-Σ_m log p(m | z_m), p the softmax of the negative squared distances to the centres of all transformations.

    Bergman, Hoshen, "Classification-Based Anomaly Detection for General Data" (2020); equations 3 and 4 of Yoon et al.,
    "Self-supervise, Refine, Repeat" (2022). c_m is the mean embedding under transformation m, in which a row counts as
    many times as its weight says. Of a single transformation nothing can be told: the score is then the squared
    distance to its centre. A row as far from all centres under every transformation scores m log m, however far it is.

    Examples
    --------
    >>> centres = np.array([[0.0, 0.0], [4.0, 0.0]])
    >>> Z = centres + np.random.default_rng(0).normal(size=(500, 2, 2))
    >>> bool(np.diff(Centres().fit(Z).score(np.stack([centres, centres[::-1]])))[0] > 0.0)
    True
    """

    name: ClassVar[str] = "centres"

    def __init__(self) -> None:
        self.centres_: NDArray[np.float64] | None = None

    def fit(self, Z: NDArray[Any], weights: NDArray[np.float64] | None = None) -> Self:
        """Fit to ``(n, d)`` or ``(n, m, d)`` embeddings, n ≥ 1; row i counts `weights` ``(n,)`` times."""
        rows, counts = choose_rows(len(Z), weights, least_weight=ANY_WEIGHT)
        Z = Z[:, None, :] if Z.ndim == 2 else Z
        Z = Z if len(rows) == len(Z) else Z[rows]
        # einsum turns float32 into float64 piece by piece; a product would copy all of Z.
        self.centres_ = np.einsum("n,nmd->md", counts / counts.sum(), Z)
        return self

    def score(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return how badly every row's transformations are told apart, ``(n,)``, from 0 on; higher is more anomalous.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        centres = self._fitted()
        m, d = centres.shape
        if m == 1:
            return by_blocks(lambda block: _squared_distance(block, centres[0]), Z.reshape(len(Z), d))
        middle = centres.mean(axis=0)
        spread = centres - middle
        two_spreads = whole_tiles(2.0 * spread.T)
        squares = np.einsum("md,md->m", spread, spread)

        def score_block(block: NDArray[Any]) -> NDArray[np.float64]:
            # Of |z - c|² = |z|² - 2 z·c + |c|² the first term is the same for all centres and falls out of the softmax.
            nearness = ((block - middle).reshape(-1, d) @ two_spreads)[:, :m]
            nearness -= squares
            nearness = nearness.reshape(-1, m, m)
            own = np.diagonal(nearness, axis1=1, axis2=2)
            nearest = nearness.max(axis=2)
            total = np.exp(nearness - nearest[:, :, None]).sum(axis=2)
            score: NDArray[np.float64] = (nearest - own + np.log(total)).sum(axis=1)
            return score

        return by_blocks(score_block, Z, n_rows=_BLOCK_ROWS)

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        return State({}, {"centres": self._fitted()})

    @classmethod
    def from_state(cls, state: State) -> Centres:
        """Read what :meth:`state` returned; ValueError if there is no centre."""
        classifier = cls(**state.values)
        classifier.centres_ = state.array("centres", 2)
        if not len(classifier.centres_):
            raise ValueError(f"array 'centres' has shape {classifier.centres_.shape}; allowed: a row or more")
        return classifier

    def _fitted(self) -> NDArray[np.float64]:
        if self.centres_ is None:
            raise RuntimeError("Centres is not fitted; call fit first")
        return self.centres_


def _squared_distance(Z: NDArray[Any], centre: NDArray[np.float64]) -> NDArray[np.float64]:
    difference = Z - centre
    squared: NDArray[np.float64] = np.einsum("nd,nd->n", difference, difference)
    return squared
