"""The identity representation: the scaled fields themselves. Nothing to train, so a first model is ready in seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.state import State


class Identity:
    """g(x) = x."""

    name: ClassVar[str] = "identity"
    shrinkage: ClassVar[float] = 0.1
    takes: ClassVar[str] = "fields"

    def steps_per_epoch(self, n_rows: int) -> int:
        """Return 1, as good as any."""
        return 1

    def warm_up_steps(self, n_rows: int) -> int:
        """Return 0: it is as good as it will be."""
        return 0

    def steps_for(self, n_rows: int) -> int:
        """Return 0: there is nothing to train."""
        return 0

    def fit(
        self, X: NDArray[np.float32], rng: np.random.Generator, *, device: str = "cpu", n_steps: int | None = None
    ) -> Self:
        """Do nothing: there is nothing to learn."""
        return self

    def update(self, X: NDArray[np.float32], n_steps: int, on_step: Callable[[int, float], None] | None = None) -> None:
        """Do nothing: there is nothing to train."""

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
