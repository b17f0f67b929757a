"""One-class classifiers: fitted on embeddings, they say how anomalous an embedding is."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from models.occ.blend import Blend
from models.occ.centres import Centres
from models.occ.energy import Energy
from models.occ.gde import GDE
from models.occ.histogram import Histogram
from models.occ.isolation_forest import IsolationForest
from models.occ.kde import KDE
from models.occ.knn import KNN
from models.occ.lof import LOF
from models.occ.ocsvm import OCSVM
from models.occ.pca import PCA, RobustPCA
from models.state import State


class OneClassClassifier(Protocol):
    """What refinement and the final model ask of a classifier."""

    name: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        """Take options by keyword, of which none is needed; ValueError if one is not allowed."""
        ...

    def fit(self, Z: NDArray[Any], weights: NDArray[np.float64] | None = None) -> Self:
        """Fit to ``(n, d)`` or ``(n, m, d)`` embeddings, n ≥ 1; a row of weight 0 has no influence."""
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


CLASSIFIERS: dict[str, type[OneClassClassifier]] = {
    "blend": Blend,
    "gde": GDE,
    "knn": KNN,
    "histogram": Histogram,
    "kde": KDE,
    "ocsvm": OCSVM,
    "isolation_forest": IsolationForest,
    "lof": LOF,
    "pca": PCA,
    "robust_pca": RobustPCA,
    "centres": Centres,
    "energy": Energy,
}
