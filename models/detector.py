"""Model, the immutable thing that scores: preprocessing, representation, classifier and calibration in a row.

How it came to be is :mod:`models.training`'s; files are :mod:`models.persistence`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.calibration import Calibration
from models.explanation import Contributions, Explainer, FieldContribution
from models.occ import OneClassClassifier
from models.preprocessing import NumericField, Preprocessor
from models.representations import Representation
from models.state import Columns

NEVER_SEEN = "never seen before"
N_CANARY_ROWS = 16


class Scores(NamedTuple):
    """What a model says of n rows."""

    score: NDArray[np.float64]
    """Negative log density, ``(n,)``, higher = more anomalous."""
    p_value: NDArray[np.float64]
    """Share of normal records scoring at least as high, ``(n,)``, in (0, 1]."""
    severity: NDArray[np.float64]
    """log p / log α, ``(n,)``, ≥ 0, finite; 1.0 is the boundary for every model."""
    flagged: NDArray[np.bool_]
    """p ≤ α, ``(n,)``."""


@dataclass(frozen=True)
class Model:
    """A trained detector. Rows are scored each on its own: the same row gets the same bits in every batch."""

    preprocessor: Preprocessor
    representation: Representation
    classifier: OneClassClassifier
    calibration: Calibration
    explainer: Explainer
    false_alarm_rate: float = 0.005
    """α: the share of normal records that may be flagged."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What is worth telling of its training; never used."""

    def __post_init__(self) -> None:
        if not 0.0 < self.false_alarm_rate < 1.0:
            raise ValueError(f"false_alarm_rate is {self.false_alarm_rate!r}; allowed: above 0 and below 1")

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that it needs."""
        return self.preprocessor.names

    @property
    def representation_name(self) -> str:
        """The representation's key in ``REPRESENTATIONS``."""
        return self.representation.name

    def score(self, columns: Columns) -> Scores:
        """Score rows.

        Parameters
        ----------
        columns
            Field → ``(n,)``, n ≥ 0; object dtype (str or None) for categories, numeric (NaN: missing) for the others.

        Raises
        ------
        ValueError
            If a field is missing, of the wrong dtype or length, or infinite; names it.
        """
        X = self.preprocessor.transform(columns)
        score = self.classifier.score(self.representation.embed(X))
        log_p, log_rate = self.calibration.log_p(score), np.log(self.false_alarm_rate)
        p_value = np.exp(np.maximum(log_p, np.log(np.finfo(np.float64).tiny)))
        return Scores(score, p_value, log_p / log_rate + 0.0, log_p <= log_rate)

    def explain(self, columns: Columns, n_top: int = 5) -> list[tuple[FieldContribution, ...]]:
        """Return for each row the `n_top` fields that add most to its score, greatest first."""
        X = self.preprocessor.transform(columns)
        return self.explainer.explain(X, columns, self.preprocessor, self.representation, self.classifier, n_top)

    def contributions(self, columns: Columns) -> Contributions:
        """Return what every field adds to the score of every row; with the base score it sums to the score."""
        X = self.preprocessor.transform(columns)
        return self.explainer.contributions(X, self.preprocessor, self.representation, self.classifier)

    def with_false_alarm_rate(self, rate: float) -> Model:
        """Return the same model with another α."""
        return replace(self, false_alarm_rate=rate)

    def canary(self) -> dict[str, NDArray[Any]]:
        """Return made-up rows to check a loaded copy with: from the marginals, missing values, values never seen.

        No row of the training data is in it: fields are drawn independently of each other.
        """
        rng = np.random.default_rng(0)
        rows: dict[str, NDArray[Any]] = {}
        for part in self.preprocessor.fields:
            if isinstance(part, NumericField):
                numbers = part.center + part.scale * rng.normal(size=N_CANARY_ROWS)
                numbers[-3:] = part.high + 100.0 * part.scale, part.low - 1.0, np.nan
                rows[part.name] = numbers
            else:
                values: list[str | None] = [NEVER_SEEN] * N_CANARY_ROWS
                if part.categories:
                    values[:-3] = [
                        part.categories[i] for i in rng.integers(len(part.categories), size=N_CANARY_ROWS - 3)
                    ]
                values[-1] = None
                column = np.empty(N_CANARY_ROWS, dtype=object)
                column[:] = values
                rows[part.name] = column
        return rows

    def describe(self) -> dict[str, Any]:
        """Return what people want to know of it, as JSON."""
        return {
            "representation": self.representation_name,
            "classifier": self.classifier.name,
            "fields": list(self.fields),
            "n_columns": self.preprocessor.n_columns,
            "false_alarm_rate": self.false_alarm_rate,
            **self.facts,
        }
