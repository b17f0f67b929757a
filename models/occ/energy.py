"""Energy: the squared length of an embedding. For residuals, whose squares add up to the reconstruction error."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.occ.flattening import flatten
from models.state import State


class Energy:
    """|z|², whatever was seen before: nothing is fitted.

    Examples
    --------
    >>> Energy().fit(np.zeros((2, 2))).score(np.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
    [25.0, 1.0]
    """

    name: ClassVar[str] = "energy"

    def __init__(self) -> None:
        self.is_fitted_ = False

    def fit(self, Z: NDArray[Any], weights: NDArray[np.float64] | None = None) -> Self:
        """Do nothing but remember that it was called."""
        self.is_fitted_ = True
        return self

    def score(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return the squared length ``(n,)`` of rows ``(n, d)`` or ``(n, m, d)``; RuntimeError before `fit`."""
        self._check()
        rows = flatten(Z)
        energy: NDArray[np.float64] = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
        return energy

    def gradient(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return d score / d Z, of the shape of `Z`."""
        self._check()
        return 2.0 * Z.astype(np.float64)

    def state(self) -> State:
        """Return an empty state."""
        self._check()
        return State()

    @classmethod
    def from_state(cls, state: State) -> Energy:
        """Return a new one."""
        return cls(**state.values).fit(np.empty((0, 0)))

    def _check(self) -> None:
        if not self.is_fitted_:
            raise RuntimeError("Energy is not fitted; call fit first")
