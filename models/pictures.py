"""Pictures to one array of bytes: what :mod:`models.preprocessing` is for fields. Scaling is the network's affair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.state import Columns, State

N_CANARY = 8
_PATTERN = 8
"""Canary pictures are patterns of so many by so many plain cells."""


def is_picture(column: NDArray[Any]) -> bool:
    """Return whether a column holds pictures, ``(n, h, w, channels)``."""
    return column.ndim == 4


@dataclass(frozen=True)
class PicturePreprocessor:
    """Checks that pictures are of the shape that was trained on, and passes them on as they are."""

    name: str
    """The column."""
    height: int
    width: int
    n_channels: int
    """1: grey, 3: red, green, blue."""

    @classmethod
    def fit(cls, columns: Columns) -> PicturePreprocessor:
        """Take the shape of the one column, ``(n, h, w, channels)`` uint8.

        Raises
        ------
        ValueError
            If there are other columns, no row, another dtype or number of channels.
        """
        if len(columns) != 1:
            raise ValueError(f"columns are {list(columns)}; allowed with pictures: their column alone")
        ((name, column),) = columns.items()
        if not is_picture(column):
            raise ValueError(
                f"column {name!r} is {column.dtype} of shape {column.shape}; needed: uint8 of shape (n, h, w, channels)"
            )
        if not len(column):
            raise ValueError(f"column {name!r} has no picture to learn from")
        made = cls(name, *column.shape[1:])
        made.transform(columns)
        return made

    def __post_init__(self) -> None:
        if self.n_channels not in (1, 3) or self.height < 1 or self.width < 1:
            raise ValueError(
                f"column {self.name!r} has pictures of {self.height} x {self.width} pixels with {self.n_channels} "
                "channels; allowed: 1 (grey) or 3 (colour), from 1 x 1 pixel on"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The one column's name."""
        return (self.name,)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a picture."""
        return self.height, self.width, self.n_channels

    def transform(self, columns: Columns) -> NDArray[Any]:
        """Return the pictures ``(n, h, w, channels)``; ValueError if they are missing or of another shape or dtype."""
        if self.name not in columns:
            raise ValueError(f"columns: {self.name!r} is missing; there are {list(columns)}")
        column = columns[self.name]
        if column.dtype != np.uint8 or column.shape[1:] != self.shape:
            raise ValueError(
                f"column {self.name!r} is {column.dtype} of shape {column.shape}; needed: uint8 of shape (n, "
                f"{', '.join(map(str, self.shape))})"
            )
        return column

    def has_layout_of(self, other: object) -> bool:
        """Return whether the other takes pictures of the same shape from the same column."""
        return self == other

    def canary(self) -> dict[str, NDArray[Any]]:
        """Return made-up pictures to check a loaded copy with: patterns of cells, black and white."""
        rng = np.random.default_rng(0)
        cells = rng.integers(0, 256, size=(N_CANARY, _PATTERN, _PATTERN, self.n_channels), dtype=np.uint8)
        cells[-2], cells[-1] = 0, 255
        rows = np.arange(self.height) * _PATTERN // self.height
        columns = np.arange(self.width) * _PATTERN // self.width
        return {self.name: np.ascontiguousarray(cells[:, rows][:, :, columns])}

    def describe(self) -> dict[str, Any]:
        """Return what people want to know of it, as JSON."""
        return {"fields": [self.name], "picture": list(self.shape)}

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        return State({"picture": vars(self)})

    @classmethod
    def from_state(cls, state: State) -> PicturePreprocessor:
        """Read what :meth:`state` returned; ValueError if it is something else."""
        try:
            return cls(**state.values["picture"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"preprocessing of pictures does not fit: {error!r}") from error
