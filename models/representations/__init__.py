"""Representations: g(x), from the matrix of scaled fields to an embedding, trained without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from models.representations.goad import Goad
from models.representations.identity import Identity
from models.state import State


class Representation(Protocol):
    """What the algorithm and the final model ask of a representation."""

    name: ClassVar[str]
    shrinkage: ClassVar[float]
    """Of the covariances of its embeddings, if the config does not say: 0/1 columns that hardly vary need much."""
    n_steps: int
    """How many training steps are wanted in all; 0 if there is nothing to train."""

    def fit(self, X: NDArray[np.float32], rng: np.random.Generator, *, device: str = "cpu") -> Self:
        """Take the shape of the data ``(n, d)`` and draw what is random, or go on from a loaded state; no training."""
        ...

    def update(self, X: NDArray[np.float32], n_steps: int, on_step: Callable[[int, float], None] | None = None) -> None:
        """Train for `n_steps` steps on ``(n, d)``, going on from where the last call ended; report (step, loss)."""
        ...

    def embed(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return ``(n, d')`` or, for m transformations, ``(n, m, d')``; each row on its own."""
        ...

    def pull_back(self, X: NDArray[np.float32], dZ: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the gradient ``(n, d)`` by `X` of a score whose gradient by ``embed(X)`` is `dZ`, of the same shape.

        That is the vector-Jacobian product of :meth:`embed`; each row on its own.
        """
        ...

    def state(self) -> State:
        """Return all that was learned."""
        ...

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Read what :meth:`state` returned; ValueError if it does not fit."""
        ...


REPRESENTATIONS: dict[str, type[Identity] | type[Goad]] = {"identity": Identity, "goad": Goad}
