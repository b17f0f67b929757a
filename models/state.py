"""What a fitted part remembers, as data: plain values and named arrays. Files are :mod:`models.persistence`'s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = Mapping[str, NDArray[Any]]
"""Field → ``(n,)``: object dtype for categories (str or None), float64 for numbers (NaN: missing)."""


@dataclass(frozen=True)
class State:
    """A part that can be written down: `values` fit into JSON, `arrays` into safetensors."""

    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def array(self, name: str, n_axes: int) -> NDArray[Any]:
        """Return the array `name`; ValueError if it is missing, not finite or has not `n_axes` axes."""
        if name not in self.arrays:
            raise ValueError(f"array {name!r} is missing; there are {sorted(self.arrays)}")
        array = self.arrays[name]
        if array.ndim != n_axes:
            raise ValueError(f"array {name!r} has shape {array.shape}; allowed: {n_axes} axes")
        if not np.isfinite(array).all():
            raise ValueError(f"array {name!r} holds values that are not finite")
        return array


def join(parts: Mapping[str, State]) -> State:
    """Put the states of named parts into one; :func:`part` takes them out again."""
    return State(
        {name: state.values for name, state in parts.items()},
        {f"{name}.{key}": array for name, state in parts.items() for key, array in state.arrays.items()},
    )


def part(state: State, name: str) -> State:
    """Return the state that :func:`join` stored under `name`; ValueError if there is none."""
    if name not in state.values:
        raise ValueError(f"part {name!r} is missing; there are {sorted(state.values)}")
    return State(state.values[name], dict(_below(state, f"{name}.")))


def _below(state: State, prefix: str) -> Iterator[tuple[str, NDArray[Any]]]:
    for key, array in state.arrays.items():
        if key.startswith(prefix):
            yield key.removeprefix(prefix), array
