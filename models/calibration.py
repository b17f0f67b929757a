"""From a score to a p-value: the share of normal records that score at least as high.

Fitted on scores of held-out rows that training did not see and that refinement has cleaned. The body is empirical;
the tail is a generalised Pareto distribution (Siffer, Fouque, Termier, Largouet, "Anomaly detection in streams with
extreme value theory", 2017), so that no score is beyond it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.state import State

MIN_SCALE = 0.01
"""Nats. Differences of a score below this mean nothing, and a tail of equal scores has no scale of its own."""
_SHAPES = np.linspace(0.0, 0.5, 11)
_TAIL_SHARE = 0.05
_WIDE_SHARE = 0.4
_LEAST_SHARE = 0.05
_MIN_TAIL_ROWS = 40


@dataclass(frozen=True)
class Calibration:
    """The distribution of normal scores.

    Parameters
    ----------
    body
        ``(k,)``, ascending: normal scores up to the start of the tail.
    tail_start
        u, above which the tail's formula holds.
    tail_share
        Share of normal scores above u, 0 < share < 1.
    scale, shape
        σ > 0 and ξ ≥ 0: P(score > u + y) = share · (1 + ξ y / σ)^(-1/ξ), or share · e^(-y/σ) where ξ = 0.
    """

    body: NDArray[np.float64]
    tail_start: float
    tail_share: float
    scale: float
    shape: float

    def log_p(self, score: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the log of the p-value, ``(n,)``, at most 0, finite, never rising with the score."""
        # Between two scores of the body p falls evenly: steps would give many rows the same severity.
        n_below = np.interp(score, self.body, self._n_below, left=0.0)
        body = np.log1p(-(1.0 - self.tail_share) * n_below / len(self.body))
        excess = np.maximum(score - self.tail_start, 0.0) / self.scale
        tail = np.log(self.tail_share) + _log_survival(excess, self.shape)
        return np.where(score > self.tail_start, tail, body)

    def score_at(self, p_value: float) -> float:
        """Return the least score with at most this p-value, 0 < `p_value` < 1."""
        if p_value >= self.tail_share:
            n_below = (1.0 - p_value) * len(self.body) / (1.0 - self.tail_share)
            return float(np.interp(n_below, self._n_below, self.body))
        ratio = np.log(self.tail_share / p_value)
        excess = ratio if self.shape == 0.0 else np.expm1(self.shape * ratio) / self.shape
        return float(self.tail_start + self.scale * excess)

    @cached_property
    def _n_below(self) -> NDArray[np.float64]:
        """How many rows of the body score less than each of it; equal scores share the least."""
        return np.searchsorted(self.body, self.body, side="left").astype(np.float64)

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        values = {name: getattr(self, name) for name in ("tail_start", "tail_share", "scale", "shape")}
        return State(values, {"body": self.body})

    @classmethod
    def from_state(cls, state: State) -> Calibration:
        """Read what :meth:`state` returned; ValueError if it does not fit."""
        body = state.array("body", 1)
        calibration = cls(body, **{name: float(value) for name, value in state.values.items()})
        if not (0.0 < calibration.tail_share < 1.0 and calibration.scale > 0.0 and calibration.shape >= 0.0):
            raise ValueError(f"calibration has values out of range: {state.values}")
        return calibration


def calibrate(scores: NDArray[np.float64], kept: NDArray[np.bool_], *, max_anomalous_ratio: float = 1.0) -> Calibration:
    """Fit the distribution of normal scores to scores of which some are anomalous.

    What the ensemble rejected holds the anomalies, and the highest of the normal scores with them: leaving all of it
    out would cut the normal tail off and flag as many normal records later. So a tail is fitted to what is certainly
    normal, as the cut-off distribution it is, and only as many rows are left out as there are more than it leads to
    expect.

    Parameters
    ----------
    scores
        ``(n,)``, n ≥ 1, held out.
    kept
        ``(n,)``: rows that no member of the ensemble rejects.
    max_anomalous_ratio
        At most this share of the rows is left out as anomalous, 0 to 1. It matters where normal records are of several
        kinds and the rare kinds score as high as anomalies.
    """
    ordered = np.sort(scores)
    # As many of the lowest scores as rows were kept, not those rows: one anomaly that the vote missed would carry the
    # start of the doubtful scores beyond all others.
    n_kept = max(1, int(kept.sum()))
    n_anomalous = _count_excess(ordered[n_kept:], _fit(ordered, n_kept, _WIDE_SHARE), n_kept)
    n_anomalous = min(n_anomalous, round(max_anomalous_ratio * len(ordered)))
    return _fit(ordered, len(ordered) - n_anomalous, _TAIL_SHARE)


def _fit(ordered: NDArray[np.float64], n_normal: int, tail_share: float) -> Calibration:
    """Fit to the lowest `n_normal` of the scores, knowing that normal scores above these were cut off."""
    normal = ordered[:n_normal]
    n_tail = min(max(_MIN_TAIL_ROWS, round(tail_share * n_normal)), max(1, n_normal // 2))
    start = float(normal[n_normal - n_tail - 1]) if n_normal > n_tail else float(normal[0])
    excess = normal[normal > start] - start
    cut = float(normal[-1]) - start if n_normal < len(ordered) else np.inf
    max_beyond = 1.0 - len(excess) / (len(excess) + len(ordered) - n_normal) if len(excess) else 0.0
    scale, shape = _fit_tail(excess, cut, max_beyond)
    beyond = float(np.exp(_log_survival(np.array([cut / scale]), shape)[0])) if np.isfinite(cut) else 0.0
    n_above = max(len(excess), 1) / max(1.0 - beyond, _LEAST_SHARE)
    body = normal[normal <= start]
    return Calibration(body, start, n_above / (n_above + len(body)), scale, shape)


def _fit_tail(excess: NDArray[np.float64], cut: float, max_beyond: float) -> tuple[float, float]:
    """Return σ and ξ of a generalised Pareto cut off at `cut`, beyond which at most the share `max_beyond` lies.

    The most likely on a grid. Without that bound a tail cut off early could be as heavy as it likes.
    """
    if not len(excess):
        return MIN_SCALE, 0.0
    scales = np.maximum(float(excess.mean()) * np.geomspace(0.1, 10.0, 61), MIN_SCALE)
    shapes, grid = np.repeat(_SHAPES, len(scales)), np.tile(scales, len(_SHAPES))
    likelihood = np.concatenate([_log_likelihood(excess, cut, scales, shape) for shape in _SHAPES])
    beyond = np.concatenate([np.exp(_log_survival(cut / scales, shape)) for shape in _SHAPES])
    likelihood[beyond > max_beyond] = -np.inf
    best = int(np.argmax(likelihood))
    return float(grid[best]), float(shapes[best])


def _log_likelihood(
    excess: NDArray[np.float64], cut: float, scales: NDArray[np.float64], shape: float
) -> NDArray[np.float64]:
    """Return the log likelihood of every σ of `scales`, ``(len(scales),)``."""
    y = excess[None, :] / scales[:, None]
    log_density = (1.0 + shape) * _log_survival(y, shape) - np.log(scales)[:, None]
    inside = np.zeros(len(scales))
    if np.isfinite(cut):
        inside = np.log(-np.expm1(_log_survival(cut / scales, shape)))
    likelihood: NDArray[np.float64] = log_density.sum(axis=1) - len(excess) * inside
    return likelihood


def _count_excess(above: NDArray[np.float64], fitted: Calibration, n_normal: int) -> int:
    """Return how many more ascending scores lie `above` the `n_normal` fitted ones than their tail leads to expect."""
    if not len(above):
        return 0
    log_p = fitted.log_p(above)
    expected = n_normal * np.exp(log_p) / max(-np.expm1(log_p[0]), _LEAST_SHARE)
    observed = np.arange(len(above), 0, -1)
    if not (observed > 1.5 * expected + 3.0 * np.sqrt(expected) + 2.0).any():
        return 0
    return min(len(above), math.ceil(float(np.max(observed - expected))))


def _log_survival(y: NDArray[np.float64], shape: float) -> NDArray[np.float64]:
    return -y if shape == 0.0 else -np.log1p(shape * y) / shape
