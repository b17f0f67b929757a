"""One-class classifiers: fitted on embeddings, they say how anomalous an embedding is."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from models.occ.gde import GDE
from models.state import State


class OneClassClassifier(Protocol):
    """What refinement and the final model ask of a classifier."""

    name: ClassVar[str]

    def fit(self, Z: NDArray[Any], weights: NDArray[np.float64] | None = None) -> Self:
        """Fit to ``(n, d)`` or ``(n, m, d)`` embeddings, n ≥ 1."""
        ...

    def score(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return ``(n,)`` finite scores, higher = more anomalous, of each row on its own."""
        ...

    def state(self) -> State:
        """Return all that was learned."""
        ...

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Read what :meth:`state` returned."""
        ...


CLASSIFIERS: dict[str, type[GDE]] = {"gde": GDE}
