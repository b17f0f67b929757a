"""The identity representation: the scaled fields themselves. Nothing to train, so a first model is ready in seconds."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.representations.untrained import Untrained
from models.state import State


class Identity(Untrained):
    """g(x) = x."""

    name: ClassVar[str] = "identity"
    shrinkage: ClassVar[float] = 0.1
    takes: ClassVar[str] = "fields"

    def fit(
        self, X: NDArray[np.float32], rng: np.random.Generator, *, device: str = "cpu", n_steps: int | None = None
    ) -> Self:
        """Do nothing: there is nothing to learn."""
        return self

    def embed(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return `X`."""
        return X

    def pull_back(self, X: NDArray[np.float32], dZ: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return `dZ`."""
        return np.asarray(dZ, dtype=np.float64)

    def state(self) -> State:
        """Return an empty state."""
        return State()

    @classmethod
    def from_state(cls, state: State) -> Identity:
        """Return a new one."""
        return cls()
