"""Self-supervise, refine, repeat: Algorithm 1 of the paper on scaled fields or pictures. Read this first.

Yoon, Sohn, Li, Arik, Lee, Pfister, "Self-supervise, Refine, Repeat: Improving Unsupervised Anomaly Detection" (2022).
Symbols: D the rows `X`, g the representation, f the final one-class classifier; RefineData is `refine_data`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.refinement import Known, Refinement, keep_all
from models.representations import Representation

REFINES = ("both", "final", "none")
SCORERS = ("final", "ensemble")
MIN_LOSS_FALL = 0.01
"""A loss that falls by less than this share from one refresh to the next has converged."""

RefineData = Callable[[NDArray[Any], np.random.Generator], tuple[Refinement, float]]
"""Embeddings ``(n, ...)`` → which rows to keep, and the γ it was done with."""


class Progress(NamedTuple):
    """Where a training is."""

    phase: str
    """``train``, ``refine``, ``calibrate``."""
    step: int
    n_steps: int
    loss: float | None = None
    excluded_ratio: float | None = None
    kept: NDArray[np.bool_] | None = None
    """After a refinement: which of the training rows it keeps."""
    rows: NDArray[np.intp] | None = None
    """With `kept`: which rows of the window the training rows are; the others are held out for calibration."""


@dataclass(frozen=True)
class Refined:
    """What comes out of Algorithm 1; the representation was trained in place."""

    refinement: Refinement
    """The last one; `kept` is what f is to be fitted on."""
    gamma: float
    refreshes: tuple[tuple[int, float], ...]
    """(step, excluded share) of every refinement."""
    n_steps: int
    """Steps that were trained; fewer than asked for if the training converged."""
    embedding: NDArray[Any]
    """g(D) at the end."""
    seconds: dict[str, float]


def self_supervise_refine_repeat(
    X: NDArray[Any],
    representation: Representation,
    refine_data: RefineData,
    *,
    rng: np.random.Generator,
    n_steps: int,
    refine: str = "both",
    tolerance: float | None = None,
    is_warm: bool = False,
    known: Known | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Refined:
    """Train a representation on ever better refined rows, and refine once more for the one-class classifier.

    Differs from the paper: the first epoch, or as many as the representation asks for, train on all rows (refining with
    an untrained network locks the anomalies in), unless it is warm, that is, was trained before.

    Parameters
    ----------
    X
        Rows of the representation's kind, ``(n, ...)``, contaminated.
    n_steps
        Training steps in all; 0 refines only.
    refine
        ``both``: the rows that the representation learns from and those of the final classifier (the paper);
        ``final``: only the latter; ``none``: nothing is refined.
    tolerance
        The training ends early at a refresh that changes the fate of at most this share of the rows while the loss has
        all but stopped falling; None trains to the end.
    known
        What is known of rows; `refine_data` must know it too. From known anomalies nothing is learned at any time.
    """
    report = on_progress or (lambda progress: None)
    known = known or Known.nothing(len(X))
    seconds = {"train": 0.0, "refine": 0.0}
    refreshes: list[tuple[int, float]] = []

    def refresh(step: int) -> tuple[NDArray[Any], Refinement, float]:
        started = time.perf_counter()
        report(Progress("refine", step, n_steps))
        Z = representation.embed(X)
        refinement, gamma = (keep_all(len(X), known), 0.0) if refine == "none" else refine_data(Z, rng)
        refreshes.append((step, refinement.excluded_ratio))
        seconds["refine"] += time.perf_counter() - started
        report(Progress("refine", step, n_steps, None, refinement.excluded_ratio, refinement.kept))
        return Z, refinement, gamma

    is_refined = refine == "both"
    kept = refresh(0)[1].kept if is_warm and n_steps and is_refined else known.settle(np.ones(len(X), dtype=bool))
    losses: list[float] = []
    done = 0
    epoch, warm_up = representation.steps_per_epoch(len(X)), 0 if is_warm else representation.warm_up_steps(len(X))
    for stop in [*(refresh_steps(epoch, n_steps, warm_up) if is_refined else []), n_steps]:
        if done:
            before, kept = kept, refresh(done)[1].kept
            if tolerance is not None and _is_settled(before, kept, losses, tolerance):
                break
        started = time.perf_counter()
        loss = _Loss(report, done, n_steps)
        representation.update(X[kept], stop - done, loss)
        losses.append(loss.last)
        seconds["train"] += time.perf_counter() - started
        done = stop
    Z, refinement, gamma = refresh(done)
    return Refined(refinement, gamma, tuple(refreshes), done, Z, seconds)


def _is_settled(before: NDArray[np.bool_], kept: NDArray[np.bool_], losses: list[float], tolerance: float) -> bool:
    return (
        len(losses) > 1
        and float(np.mean(before != kept)) <= tolerance
        and losses[-1] > (1.0 - MIN_LOSS_FALL) * losses[-2]
    )


class _Loss:
    """Passes the steps of one update on as progress of the whole, and remembers the last loss."""

    def __init__(self, report: Callable[[Progress], None], n_before: int, n_steps: int) -> None:
        self.last = np.inf
        self._report, self._n_before, self._n_steps = report, n_before, n_steps

    def __call__(self, step: int, loss: float) -> None:
        self.last = loss
        self._report(Progress("train", self._n_before + step, self._n_steps, loss))


def refresh_steps(epoch: int, n_steps: int, warm_up: int = 0) -> list[int]:
    """Return the steps below `n_steps` at which the data are refined: the ends of epochs 1, 2, 5, …, 500, each 500th.

    Of those before `warm_up` none, but there itself.

    Parameters
    ----------
    epoch
        Steps of an epoch, at least 1.

    Examples
    --------
    >>> refresh_steps(100, 1024)
    [100, 200, 500, 1000]
    >>> refresh_steps(100, 1024, 300)
    [300, 500, 1000]
    """
    steps = [warm_up] if 0 < warm_up < n_steps else []
    for n_epochs in _epochs():
        if n_epochs * epoch >= n_steps:
            return steps
        if n_epochs * epoch > warm_up:
            steps.append(n_epochs * epoch)
    raise AssertionError("the schedule has no end")


def _epochs() -> Iterator[int]:
    yield from (1, 2, 5, 10, 20, 50, 100)
    n = 500
    while True:
        yield n
        n += 500
