"""Representations: g(x), from scaled fields or from pictures to an embedding, trained without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from models.representations.autoencoder import DenoisingAutoencoder, RobustAutoencoder
from models.representations.contrastive import Contrastive
from models.representations.cutpaste import CutPaste
from models.representations.frozen import Frozen
from models.representations.goad import Goad
from models.representations.identity import Identity
from models.representations.pixels import Pixels
from models.representations.rotation import Rotation
from models.state import State


class Representation(Protocol):
    """What the algorithm and the final model ask of a representation.

    Its rows `X` are ``(n, d)`` float32 of scaled fields, or pictures ``(n, h, w, channels)`` uint8, as `takes` says.
    """

    name: ClassVar[str]
    takes: ClassVar[str]
    """``fields`` or ``picture``."""
    shrinkage: ClassVar[float]
    """Of the covariances of its embeddings, if the config does not say: 0/1 columns that hardly vary need much."""

    def steps_per_epoch(self, n_rows: int) -> int:
        """Return how many steps on `n_rows` rows are an epoch of the refinement's schedule; at least 1."""
        ...

    def steps_for(self, n_rows: int) -> int:
        """Return how many steps a training on `n_rows` rows has; 0 if there is nothing to train."""
        ...

    def warm_up_steps(self, n_rows: int) -> int:
        """Return after how many steps on all rows its embedding is good enough to refine with."""
        ...

    def fit(
        self, X: NDArray[Any], rng: np.random.Generator, *, device: str = "cpu", n_steps: int | None = None
    ) -> Self:
        """Take the shape of the data and draw what is random, or go on from a loaded state; no training.

        `n_steps` is how many steps will come, for whoever has a schedule; None: as many as :meth:`steps_for` says.
        """
        ...

    def update(self, X: NDArray[Any], n_steps: int, on_step: Callable[[int, float], None] | None = None) -> None:
        """Train for `n_steps` steps, going on from where the last call ended; report (step, loss)."""
        ...

    def embed(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Return ``(n, d')`` or, for m transformations, ``(n, m, d')``; each row on its own."""
        ...

    def state(self) -> State:
        """Return all that was learned."""
        ...

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Read what :meth:`state` returned; ValueError if it does not fit."""
        ...


class FieldRepresentation(Representation, Protocol):
    """A representation of fields, which also knows how its embedding changes with them."""

    def pull_back(self, X: NDArray[np.float32], dZ: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the gradient ``(n, d)`` by `X` of a score whose gradient by ``embed(X)`` is `dZ`, of the same shape.

        That is the vector-Jacobian product of :meth:`embed`; each row on its own.
        """
        ...


class PictureRepresentation(Representation, Protocol):
    """A representation of pictures, which also says what it sees where in them."""

    def places(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what is seen at each place of pictures, ``(n, h', w', d')``, of any resolution and dimension."""
        ...

    def on(self, device: str, n_threads: int | None = None) -> Self:
        """Return one that embeds alike on a device (``cpu``, ``cuda``, …), on a processor with so many threads."""
        ...


REPRESENTATIONS: dict[str, type[FieldRepresentation] | type[PictureRepresentation]] = {
    "identity": Identity,
    "goad": Goad,
    "pixels": Pixels,
    "rotation": Rotation,
    "contrastive": Contrastive,
    "cutpaste": CutPaste,
    "denoising_autoencoder": DenoisingAutoencoder,
    "robust_autoencoder": RobustAutoencoder,
    "frozen": Frozen,
}
