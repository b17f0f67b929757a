"""Several classifiers as one: each score on the scale of its own normal rows, then the mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.occ.flattening import choose_rows, whole_number
from models.occ.histogram import Histogram
from models.occ.knn import KNN
from models.state import State, join, part

if TYPE_CHECKING:
    from models.occ import OneClassClassifier

INDICATOR_VARIANCE = 0.1
SCALE_ROWS = 2000
MEMBER_SHARES = np.array([1.3, 0.9, 0.8])
"""What the neighbours by Mahalanobis distance, those by Euclidean distance and the histograms count in the mean."""
LEAST_SCALE = 1e-3
"""A member that scores all its rows alike has no scale of its own; smaller differences mean nothing."""


class Blend:
    """The weighted mean of nearest neighbours, by two distances, and histograms, each standardised.

    They see different things: neighbours by Mahalanobis distance broken correlations, as a Gaussian would, but of
    several kinds of normal rows; those by Euclidean distance the holes between these; histograms rare values. A score
    is how many deviations of its normal rows it lies above their mean.

    Parameters
    ----------
    shrinkage
        Of the covariance of the Mahalanobis distance; columns of zeros and ones have 0.1 added to their variance.
    n_neighbors
        A number of neighbours, or some: see :class:`models.occ.knn.KNN`.
    max_rows
        Reference rows of the neighbours. Time of scoring grows with it.
    n_bins
        Of the histograms.
    seed
        Draws the reference rows.

    Examples
    --------
    >>> Z = np.random.default_rng(0).normal(size=(500, 3))
    >>> blend = Blend().fit(Z)
    >>> bool(blend.score(np.full((1, 3), 5.0))[0] > blend.score(Z).max())
    True
    """

    name: ClassVar[str] = "blend"

    def __init__(
        self,
        *,
        shrinkage: float = 1e-4,
        n_neighbors: int | Sequence[int] = (5, 50),
        max_rows: int = 1000,
        n_bins: int = 10,
        seed: int = 0,
    ) -> None:
        self.options: dict[str, Any] = {
            "shrinkage": shrinkage,
            "n_neighbors": KNN(n_neighbors=n_neighbors).n_neighbors,
            "max_rows": whole_number("max_rows", max_rows),
            "n_bins": whole_number("n_bins", n_bins, least=2),
            "seed": whole_number("seed", seed, least=0),
        }
        KNN(whitening=shrinkage)
        self.members_: list[OneClassClassifier] = []
        self.centers_: NDArray[np.float64] = np.empty(0)
        self.scales_: NDArray[np.float64] = np.empty(0)

    @classmethod
    def of(cls, members: Sequence[OneClassClassifier]) -> Blend:
        """Return the plain mean of fitted classifiers, such as the members of a refinement's ensemble."""
        blend = cls()
        blend.members_ = list(members)
        blend.centers_, blend.scales_ = np.zeros(len(members)), np.ones(len(members))
        return blend

    def fit(self, Z: NDArray[Any], weights: NDArray[np.float64] | None = None) -> Self:
        """Fit every member to ``(n, d)`` or ``(n, m, d)`` embeddings, n ≥ 1, and standardise it on these."""
        o = self.options
        neighbours = {name: o[name] for name in ("n_neighbors", "max_rows", "seed")}
        members: list[OneClassClassifier] = [
            KNN(whitening=o["shrinkage"], indicator_variance=INDICATOR_VARIANCE, **neighbours),
            KNN(**neighbours),
            Histogram(n_bins=o["n_bins"]),
        ]
        self.members_ = [member.fit(Z, weights) for member in members]
        rows, _ = choose_rows(len(Z), weights, max_rows=SCALE_ROWS, seed=o["seed"])
        scores = np.array([member.score(Z[rows]) for member in self.members_])
        self.centers_ = scores.mean(axis=1)
        self.scales_ = np.maximum(scores.std(axis=1), LEAST_SCALE) / MEMBER_SHARES
        return self

    def score(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return the mean of the members' standardised scores, ``(n,)``; higher is more anomalous.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        total = np.zeros(len(Z))
        for member, center, scale in zip(self._fitted(), self.centers_, self.scales_, strict=True):
            total += (member.score(Z) - center) / scale
        return total / len(self.members_)

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        members = self._fitted()
        parts = join({f"member{index}": member.state() for index, member in enumerate(members)})
        values = {"options": self.options, "members": [member.name for member in members], **parts.values}
        return State(values, {"centers": self.centers_, "scales": self.scales_, **parts.arrays})

    @classmethod
    def from_state(cls, state: State) -> Blend:
        """Read what :meth:`state` returned; ValueError if it does not fit."""
        from models.occ import CLASSIFIERS

        blend = cls(**state.values["options"])
        names = state.values["members"]
        blend.members_ = [CLASSIFIERS[name].from_state(part(state, f"member{i}")) for i, name in enumerate(names)]
        blend.centers_, blend.scales_ = state.array("centers", 1), state.array("scales", 1)
        if not len(names) or blend.centers_.shape != (len(names),) or blend.scales_.shape != (len(names),):
            raise ValueError(
                f"centers {blend.centers_.shape} and scales {blend.scales_.shape} must fit members {names}"
            )
        if not (blend.scales_ > 0.0).all():
            raise ValueError(f"scales are {blend.scales_.tolist()}; allowed: above 0")
        return blend

    def _fitted(self) -> list[OneClassClassifier]:
        if not self.members_:
            raise RuntimeError("Blend is not fitted; call fit first")
        return self.members_
