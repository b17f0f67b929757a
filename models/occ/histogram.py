"""Histograms: how rare a row's values are, column by column, as if columns had nothing to do with each other."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.blocks import by_blocks
from models.occ.flattening import ANY_WEIGHT, choose_rows, flatten, whole_number
from models.state import State

_PRIOR = 0.5
"""Rows added to each bin, so that an empty one has a log."""

_SLOPE = 1e-3


class Histogram:
    """Sum over columns of the negative log share of the rows that fall into the row's bin.

    Goldstein and Dengel, "Histogram-based outlier score (HBOS)" (2012), with bins of equal width. Differs from it: a
    value outside the range seen costs a nat more than the rarest bin, and hardly more the farther it is: in a stream
    that drifts, one column outside would drown the others.

    Parameters
    ----------
    n_bins
        Of every column, from its least to its greatest value, at least 2.

    Examples
    --------
    >>> Z = np.random.default_rng(0).normal(size=(500, 3))
    >>> histogram = Histogram().fit(Z)
    >>> bool(histogram.score(np.full((1, 3), 9.0))[0] > histogram.score(Z).max())
    True
    """

    name: ClassVar[str] = "histogram"

    def __init__(self, *, n_bins: int = 10) -> None:
        self.n_bins = whole_number("n_bins", n_bins, least=2)
        self.low_: NDArray[np.float64] | None = None
        self.width_: NDArray[np.float64] | None = None
        self.cost_: NDArray[np.float64] | None = None

    def fit(self, Z: NDArray[Any], weights: NDArray[np.float64] | None = None) -> Self:
        """Count ``(n, d)`` or ``(n, m, d)`` embeddings, n ≥ 1, of which row i counts `weights` ``(n,)`` times."""
        rows, weight = choose_rows(len(Z), weights, least_weight=ANY_WEIGHT)
        flat = flatten(Z)[rows].astype(np.float64)
        low, high = flat.min(axis=0), flat.max(axis=0)
        self.low_ = low
        self.width_ = np.where(high > low, high - low, 1.0) / self.n_bins
        bins = np.clip(_place(flat, self.low_, self.width_), 0, self.n_bins - 1).astype(np.intp)
        d = flat.shape[1]
        slots = (bins + np.arange(d) * self.n_bins).ravel()
        counts = np.bincount(slots, np.repeat(weight, d), minlength=d * self.n_bins).reshape(d, self.n_bins)
        self.cost_ = -np.log((counts + _PRIOR) / (weight.sum() + _PRIOR * self.n_bins))
        return self

    def column_scores(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return what each column adds to the score, ``(n, d)`` or ``(n, m d)``.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        low, width, cost = self._fitted()
        starts, worst, flat_cost = np.arange(len(low)) * self.n_bins, cost.max(axis=1) + 1.0, cost.ravel()

        def score_block(flat: NDArray[Any]) -> NDArray[np.float64]:
            place = _place(flat.astype(np.float64), low, width)
            scores: NDArray[np.float64] = flat_cost[np.clip(place, 0, self.n_bins - 1).astype(np.intp) + starts]
            # The greatest value seen lies on the last edge, place n_bins, and is inside.
            beyond = np.maximum(-place, place - self.n_bins)
            if (beyond > 0.0).any():
                scores = np.where(beyond > 0.0, worst + _SLOPE * np.log1p(np.maximum(beyond, 0.0)), scores)
            return scores

        return by_blocks(score_block, flatten(Z))

    def score(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return the sum of :meth:`column_scores`, ``(n,)``; higher is more anomalous."""
        total: NDArray[np.float64] = self.column_scores(Z).sum(axis=1)
        return total

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        low, width, cost = self._fitted()
        return State({"n_bins": self.n_bins}, {"low": low, "width": width, "cost": cost})

    @classmethod
    def from_state(cls, state: State) -> Histogram:
        """Read what :meth:`state` returned; ValueError if shapes do not fit."""
        histogram = cls(**state.values)
        low, width, cost = state.array("low", 1), state.array("width", 1), state.array("cost", 2)
        if width.shape != low.shape or cost.shape != (len(low), histogram.n_bins) or not (width > 0.0).all():
            raise ValueError(
                f"low {low.shape}, width {width.shape} and cost {cost.shape} must agree, widths be above 0"
            )
        histogram.low_, histogram.width_, histogram.cost_ = low, width, cost
        return histogram

    def _fitted(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        if self.low_ is None or self.width_ is None or self.cost_ is None:
            raise RuntimeError("Histogram is not fitted; call fit first")
        return self.low_, self.width_, self.cost_


def _place(flat: NDArray[np.float64], low: NDArray[np.float64], width: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where values lie, in bins from the least value seen, ``(n, d)``."""
    place: NDArray[np.float64] = np.clip((flat - low) / width, -1e15, 1e15)
    return place
