"""Self-supervise, refine, repeat: Algorithm 1 of the paper on a matrix of scaled fields. Read this first.

Yoon, Sohn, Li, Arik, Lee, Pfister, "Self-supervise, Refine, Repeat: Improving Unsupervised Anomaly Detection" (2022).
Symbols: D the rows `X`, g the representation, f the final one-class classifier, γ `gamma`, K `n_subsets`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.occ import OneClassClassifier
from models.refinement import Refinement, estimate_gamma, refine
from models.representations import Representation

ROWS_PER_STEP = 64
"""The paper's minibatch: an epoch is N / 64 steps, whatever the representation's own minibatch is."""


class Progress(NamedTuple):
    """Where a training is."""

    phase: str
    """``train``, ``refine``, ``calibrate``."""
    step: int
    n_steps: int
    loss: float | None = None
    excluded_ratio: float | None = None


@dataclass(frozen=True)
class Refined:
    """What comes out of Algorithm 1; the representation was trained in place."""

    classifier: OneClassClassifier
    """f, fitted on the embeddings of the kept rows."""
    refinement: Refinement
    """The last one; `kept` is what f was fitted on."""
    gamma: float
    refreshes: tuple[tuple[int, float], ...]
    """(step, excluded share) of every refinement."""
    seconds: dict[str, float]


def self_supervise_refine_repeat(
    X: NDArray[np.float32],
    representation: Representation,
    make_occ: Callable[[], OneClassClassifier],
    *,
    n_subsets: int,
    gamma: float | None,
    n_rounds: int,
    rng: np.random.Generator,
    n_steps: int,
    is_warm: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Refined:
    """Train a representation on ever better refined rows, and a one-class classifier on the last of them.

    Differs from the paper: the first epoch trains on all rows (refining with an untrained network locks the anomalies
    in), unless the representation is warm, that is, was trained before.

    Parameters
    ----------
    X
        ``(n, d)``, contaminated.
    gamma
        γ; None estimates it anew at every refinement.
    n_steps
        Training steps in all; 0 refines and fits only.
    """
    report = on_progress or (lambda progress: None)
    seconds = {"train": 0.0, "refine": 0.0}
    refreshes: list[tuple[int, float]] = []

    def refresh(step: int) -> tuple[NDArray[Any], Refinement, float]:
        started = time.perf_counter()
        report(Progress("refine", step, n_steps))
        Z = representation.embed(X)
        share = estimate_gamma(make_occ().fit(Z).score(Z)) if gamma is None else gamma
        refinement = refine(Z, make_occ, n_subsets=n_subsets, gamma=share, rng=rng, n_rounds=n_rounds)
        refreshes.append((step, refinement.excluded_ratio))
        seconds["refine"] += time.perf_counter() - started
        report(Progress("refine", step, n_steps, None, refinement.excluded_ratio))
        return Z, refinement, share

    kept = refresh(0)[1].kept if is_warm and n_steps else np.ones(len(X), dtype=bool)
    done = 0
    for stop in [*refresh_steps(len(X), n_steps), n_steps]:
        if done:
            kept = refresh(done)[1].kept
        started = time.perf_counter()
        representation.update(X[kept], stop - done, partial(_report_step, report, done, n_steps))
        seconds["train"] += time.perf_counter() - started
        done = stop
    Z, refinement, share = refresh(n_steps)
    classifier = make_occ().fit(Z[refinement.kept])
    return Refined(classifier, refinement, share, tuple(refreshes), seconds)


def _report_step(report: Callable[[Progress], None], n_before: int, n_steps: int, step: int, loss: float) -> None:
    report(Progress("train", n_before + step, n_steps, loss))


def refresh_steps(n_rows: int, n_steps: int) -> list[int]:
    """Return the steps below `n_steps` at which the data are refined: the ends of epochs 1, 2, 5, …, 500, each 500th.

    Examples
    --------
    >>> refresh_steps(6400, 1024)
    [100, 200, 500, 1000]
    """
    epoch = max(1, round(n_rows / ROWS_PER_STEP))
    steps: list[int] = []
    for n_epochs in _epochs():
        if n_epochs * epoch >= n_steps:
            return steps
        steps.append(n_epochs * epoch)
    raise AssertionError("the schedule has no end")


def _epochs() -> Iterator[int]:
    yield from (1, 2, 5, 10, 20, 50, 100)
    n = 500
    while True:
        yield n
        n += 500
