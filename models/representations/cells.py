"""Pictures in cells: means over a grid of nearly equal rectangles."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def cell_means(values: NDArray[Any], n_cells: int) -> NDArray[np.float64]:
    """Return ``(n, h, w, ...)`` averaged over at most `n_cells` cells a side, ``(n, h', w', ...)``."""
    h, w = values.shape[1:3]
    rows, columns = min(n_cells, h), min(n_cells, w)
    row_starts, column_starts = np.arange(rows) * h // rows, np.arange(columns) * w // columns
    sums = np.add.reduceat(np.add.reduceat(values, row_starts, axis=1), column_starts, axis=2)
    sizes = np.outer(np.diff([*row_starts, h]), np.diff([*column_starts, w]))
    means: NDArray[np.float64] = sums / sizes.reshape(rows, columns, *(1,) * (values.ndim - 3))
    return means
