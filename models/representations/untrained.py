"""What representations share that have nothing to train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray


class Untrained:
    """A schedule without a step."""

    def steps_per_epoch(self, n_rows: int) -> int:
        """Return 1, as good as any."""
        return 1

    def warm_up_steps(self, n_rows: int) -> int:
        """Return 0: it is as good as it will be."""
        return 0

    def steps_for(self, n_rows: int) -> int:
        """Return 0: there is nothing to train."""
        return 0

    def update(self, X: NDArray[Any], n_steps: int, on_step: Callable[[int, float], None] | None = None) -> None:
        """Do nothing: there is nothing to train."""
