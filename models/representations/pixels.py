"""Pictures as they are, made small: nothing to train, so a first model of pictures is ready in seconds."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.occ.flattening import flatten
from models.representations.cells import cell_means
from models.representations.untrained import Untrained
from models.state import State

_BLOCK_ROWS = 1024


class Pixels(Untrained):
    """Mean and deviation of the pixels in the cells of a grid, ``(n, 2 cells channels)``.

    Parameters
    ----------
    n_cells
        Cells a side, at most; pictures with fewer pixels have a cell for each.
    """

    name: ClassVar[str] = "pixels"
    takes: ClassVar[str] = "picture"
    shrinkage: ClassVar[float] = 0.1

    def __init__(self, *, n_cells: int = 8) -> None:
        if not isinstance(n_cells, int) or isinstance(n_cells, bool) or not 1 <= n_cells <= 64:
            raise ValueError(f"n_cells is {n_cells!r}; allowed: whole numbers from 1 to 64")
        self.options: dict[str, Any] = {"n_cells": n_cells}

    def fit(
        self, X: NDArray[Any], rng: np.random.Generator, *, device: str = "cpu", n_steps: int | None = None
    ) -> Self:
        """Do nothing: there is nothing to learn."""
        return self

    def embed(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embedding of pictures ``(n, h, w, channels)``."""
        return np.concatenate([flatten(moment) for moment in self._moments(X)], axis=1)

    def places(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return mean and deviation of every cell of pictures, ``(n, h', w', 2 channels)``."""
        return np.concatenate(self._moments(X), axis=3)

    def on(self, device: str, n_threads: int | None = None) -> Self:
        """Return this: it is computed on the processor, by one thread."""
        return self

    def state(self) -> State:
        """Return the options."""
        return State(dict(self.options))

    @classmethod
    def from_state(cls, state: State) -> Pixels:
        """Return a new one; ValueError if the state does not fit."""
        try:
            return cls(**state.values)
        except TypeError as error:
            raise ValueError(f"pixels: state does not fit: {error}") from error

    def _moments(self, X: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and deviation of every cell and channel, ``(n, h', w', channels)`` each, in parts of 255."""
        n, h, w, c = X.shape
        n_cells = self.options["n_cells"]
        mean = np.empty((n, min(n_cells, h), min(n_cells, w), c), dtype=np.float32)
        deviation = np.empty_like(mean)
        for start in range(0, n, _BLOCK_ROWS):
            block = X[start : start + _BLOCK_ROWS].astype(np.int64)
            means, squares = cell_means(block, n_cells), cell_means(block * block, n_cells)
            mean[start : start + _BLOCK_ROWS] = means / 255.0
            deviation[start : start + _BLOCK_ROWS] = np.sqrt(np.maximum(squares - means * means, 0.0)) / 255.0
        return mean, deviation
