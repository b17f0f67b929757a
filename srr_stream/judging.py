"""What makes a verdict of a score: the flag that a person's label takes away, and the reasons of those that stay.

The scorer and the API judge by the same two functions, so a record gets the same verdict from both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consumers.records import Contribution

if TYPE_CHECKING:
    from models.detector import Scores
    from srr_stream.labels.known_normals import KnownNormals
    from srr_stream.live_model import Live

Features = Mapping[str, NDArray[Any]]
"""Field → ``(n, …)``."""


def spare(
    scores: Scores, features: Features, live: Live, known_normals: KnownNormals | None
) -> tuple[Scores, dict[int, str]]:
    """Take the flag from what lies near a record marked normal; return which record that is, of each such row."""
    if known_normals is None:
        return scores, {}
    covered = known_normals.covering(live, features, scores.flagged)
    if not covered:
        return scores, covered
    flagged = scores.flagged.copy()
    flagged[list(covered)] = False
    return scores._replace(flagged=flagged), covered


def reasons_of(
    features: Features, flagged: NDArray[np.bool_], live: Live, n_reasons: int
) -> dict[int, tuple[Contribution, ...]]:
    """Return flagged row → its `n_reasons` top fields, greatest first; nothing if `n_reasons` is 0."""
    rows: list[int] = np.flatnonzero(flagged).tolist() if n_reasons else []
    if not rows:
        return {}
    explained = live.model.explain({name: column[rows] for name, column in features.items()}, n_top=n_reasons)
    return {row: tuple(Contribution(*part) for part in parts) for row, parts in zip(rows, explained, strict=True)}
