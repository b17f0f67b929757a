"""Why a picture scored as it did: at which of its places there is something that is not usual there.

What :mod:`models.explanation` is for fields.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.explanation import FieldContribution
from models.occ.gde import GDE
from models.representations import PictureRepresentation
from models.state import State, join, part

_MAX_PICTURES = 500
_MAX_PLACES = 20_000
_SHRINKAGE = 0.1


@dataclass(frozen=True)
class PictureExplainer:
    """Compares a picture's score, and what is seen at each of its places, with what is usual.

    Features at a place are compared by a Gaussian, as in PaDiM (Defard, Setkov, Loesch, Audigier 2021). Differs from
    it: the mean is the place's own, the covariance is that of all places together.
    """

    usual_score: float
    """The median of the refined rows."""
    usual_places: NDArray[np.float32]
    """``(h', w', d)``: mean features at every place of refined pictures."""
    deviations: GDE
    """Of features from them."""
    usual_heat: float
    """The median place's score by `deviations`."""

    @classmethod
    def fit(
        cls, X: NDArray[np.uint8], usual_score: float, representation: PictureRepresentation, rng: np.random.Generator
    ) -> PictureExplainer:
        """Learn what is usual from refined pictures ``(n, h, w, channels)``, n ≥ 1; of many, from 500 of them."""
        rows = np.sort(rng.permutation(len(X))[:_MAX_PICTURES])
        places = representation.places(X[rows])
        usual_places = places.mean(axis=0, dtype=np.float64).astype(np.float32)
        deviations = (places - usual_places).reshape(-1, places.shape[3])
        chosen = np.sort(rng.permutation(len(deviations))[:_MAX_PLACES])
        gaussian = GDE(shrinkage=_SHRINKAGE).fit(deviations[chosen])
        return cls(usual_score, usual_places, gaussian, float(np.median(gaussian.score(deviations[chosen]))))

    def explain(self, name: str, score: NDArray[np.float64]) -> list[tuple[FieldContribution, ...]]:
        """Return for each of ``(n,)`` scores the picture's contribution: all of it."""
        return [(FieldContribution(name, float(value) - self.usual_score, None, None),) for value in score]

    def heat_maps(self, X: NDArray[np.uint8], representation: PictureRepresentation) -> NDArray[np.float32]:
        """Return heat maps of ``(n, h, w, channels)`` pictures, in pixels, ``(n, h, w)``.

        0 is the median place of the refined pictures; higher is less usual. The classifier has no say in it.
        """
        places = representation.places(X)
        n, h, w, d = places.shape
        heat = self.deviations.score((places - self.usual_places).reshape(n * h * w, d)) - self.usual_heat
        return enlarged(heat.reshape(n, h, w).astype(np.float32), X.shape[1], X.shape[2])

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        own = State({"usual_score": self.usual_score, "usual_heat": self.usual_heat}, {"places": self.usual_places})
        return join({"usual": own, "deviations": self.deviations.state()})

    @classmethod
    def from_state(cls, state: State) -> PictureExplainer:
        """Read what :meth:`state` returned; ValueError if it is something else."""
        own = part(state, "usual")
        numbers = [own.values.get(name) for name in ("usual_score", "usual_heat")]
        if not all(isinstance(value, float) and np.isfinite(value) for value in numbers):
            raise ValueError(f"explainer: usual_score and usual_heat are {numbers}; needed: numbers")
        places, deviations = own.array("places", 3), GDE.from_state(part(state, "deviations"))
        d = deviations.state().arrays["mean"].shape[-1]
        if places.shape[2] != d:
            raise ValueError(f"explainer: places have shape {places.shape}, deviations {d} dimensions")
        usual_score, usual_heat = (float(value) for value in numbers if value is not None)
        return cls(usual_score, places, deviations, usual_heat)


def enlarged(maps: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Return maps ``(n, h', w')`` with values in between, ``(n, height, width)``, bilinear."""
    for axis, size in ((1, height), (2, width)):
        n = maps.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0.0, n - 1.0)
        low = np.minimum(at.astype(np.intp), max(0, n - 2))
        high = np.minimum(low + 1, n - 1)
        share = (at - low).astype(np.float32)
        share = share.reshape(1, -1, 1) if axis == 1 else share.reshape(1, 1, -1)
        maps = np.take(maps, low, axis=axis) * (1.0 - share) + np.take(maps, high, axis=axis) * share
    return np.asarray(maps, dtype=np.float32)
