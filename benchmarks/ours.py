"""How this project's own detectors are made: the only module of the benchmarks that knows the learning library.

Presets are those of `models.presets`; options are fields of `models.training.TrainingConfig`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from models.training import Progress, Trained, TrainingConfig

ROOT = Path(__file__).parents[1]
BLOCK_ROWS = 65_536
"""Rows scored at once: the float64 columns of half a million KDD records would take half a gigabyte."""

Scorer = Callable[[NDArray[Any]], NDArray[np.float64]]


def config(preset: str, **options: Any) -> TrainingConfig:
    """Return the preset with some fields changed, as the public estimator reads them: None is the preset's.

    `n_steps` goes into the options of the representation, where it has steps.
    """
    from models.estimator import SRRDetector

    n_steps = options.pop("n_steps", None)
    chosen: TrainingConfig = SRRDetector(preset, **options).config()
    if n_steps is None or chosen.representation == "identity":
        return chosen
    return replace(chosen, representation_options={**chosen.representation_options, "n_steps": n_steps})


def facts(chosen: TrainingConfig) -> dict[str, Any]:
    """Return a configuration as JSON: it is part of a unit's key, so that a preset that changed is measured anew."""
    plain: dict[str, Any] = json.loads(
        json.dumps({f.name: getattr(chosen, f.name) for f in fields(chosen)}, default=dict)
    )
    return plain


def hyperparameters(preset: str) -> dict[str, Any]:
    """Return the preset's fields and the options of its representation, defaults and all."""
    from models.representations import REPRESENTATIONS

    chosen = config(preset)
    parameters = inspect.signature(REPRESENTATIONS[chosen.representation]).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return {**facts(chosen), **defaults, **chosen.representation_options}


def default_scorer(X: NDArray[Any], seed: int, **options: Any) -> Scorer:
    """Fit the public estimator, as a user would: ``SRRDetector()``, with nothing but `options` changed."""
    from models.estimator import SRRDetector

    detector = SRRDetector(**options, random_state=seed, device="cpu").fit(X)
    return lambda rows: _by_blocks(detector.decision_function, rows)


def preset_scorer(X: NDArray[Any], seed: int, chosen: TrainingConfig) -> Scorer:
    """Train a configuration and return its scores."""
    return scorer_of(trained(X, seed, chosen))


def trained(
    X: NDArray[Any], seed: int, chosen: TrainingConfig, on_progress: Callable[[Progress], None] | None = None
) -> Trained:
    """Train a configuration on a matrix."""
    from models.training import train

    return train(_columns(X), chosen, seed=seed, on_progress=on_progress, device="cpu")


def scorer_of(result: Trained) -> Scorer:
    """Return the scores of what :func:`trained` returned."""
    return lambda rows: _by_blocks(lambda block: result.model.score(_columns(block)).score, rows)


def classifier_scorer(X: NDArray[Any], name: str, **options: Any) -> Scorer:
    """Fit a one-class classifier to the rows as they are, without preprocessing, refinement or representation."""
    from models.occ import CLASSIFIERS

    fitted = CLASSIFIERS[name](**options).fit(X)
    return lambda rows: _by_blocks(fitted.score, rows)


def code_digest() -> str:
    """Return a short digest of the learning library's source: records of other code should not stand in one table."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "models").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def refresh_of(progress: Progress, n_rows: int) -> Mapping[str, Any] | None:
    """Return step, excluded share and, where the library tells them, kept rows of a finished refinement; else None.

    `kept` is ``(n_rows,)`` with NaN for rows that were held out for calibration, and so never judged.
    """
    if progress.phase != "refine" or progress.excluded_ratio is None:
        return None
    kept, rows = getattr(progress, "kept", None), getattr(progress, "rows", None)
    judged: NDArray[np.float64] | None = None
    if kept is not None and rows is not None:
        judged = np.full(n_rows, np.nan)
        judged[rows] = kept
    return {"step": progress.step, "excluded_ratio": progress.excluded_ratio, "kept": judged}


def _columns(X: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {f"x{index}": np.ascontiguousarray(column, dtype=np.float64) for index, column in enumerate(X.T)}


def _by_blocks(score: Scorer, rows: NDArray[Any]) -> NDArray[np.float64]:
    blocks = [score(rows[start : start + BLOCK_ROWS]) for start in range(0, len(rows), BLOCK_ROWS)]
    return np.concatenate(blocks) if blocks else np.empty(0)
