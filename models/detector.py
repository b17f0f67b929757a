"""Model, the immutable thing that scores: preprocessing, representation, classifier and calibration in a row.

How it came to be is :mod:`models.training`'s; files are :mod:`models.persistence`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from models.blocks import by_chunks
from models.calibration import Calibration
from models.explanation import Contributions, Explainer, FieldContribution
from models.heat_maps import PictureExplainer
from models.occ import OneClassClassifier
from models.pictures import PicturePreprocessor
from models.preprocessing import Preprocessor
from models.representations import FieldRepresentation, PictureRepresentation
from models.state import Columns


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

    preprocessor: Preprocessor | PicturePreprocessor
    representation: FieldRepresentation | PictureRepresentation
    classifier: OneClassClassifier
    calibration: Calibration
    explainer: Explainer | PictureExplainer
    false_alarm_rate: float = 0.005
    """α: the share of normal records that may be flagged."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What is worth telling of its training; never used."""

    def __post_init__(self) -> None:
        if not 0.0 < self.false_alarm_rate < 1.0:
            raise ValueError(f"false_alarm_rate is {self.false_alarm_rate!r}; allowed: above 0 and below 1")
        if (self.representation.takes == "picture") != isinstance(self.preprocessor, PicturePreprocessor):
            raise ValueError(f"representation {self.representation.name!r} takes {self.representation.takes}")

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
            Field → ``(n,)``, n ≥ 0; object dtype (str or None) for categories, numeric (NaN: missing) for the others;
            or one column of pictures, ``(n, h, w, channels)`` uint8.

        Raises
        ------
        ValueError
            If a field is missing, of the wrong dtype or length, or infinite; names it.
        """
        X = self.preprocessor.transform(columns)
        score = self._scores(X)
        log_p, log_rate = self.calibration.log_p(score), np.log(self.false_alarm_rate)
        p_value = np.exp(np.maximum(log_p, np.log(np.finfo(np.float64).tiny)))
        return Scores(score, p_value, log_p / log_rate + 0.0, log_p <= log_rate)

    def explain(self, columns: Columns, n_top: int = 5) -> list[tuple[FieldContribution, ...]]:
        """Return for each row the `n_top` fields that add most to its score, greatest first; of pictures the one."""
        X = self.preprocessor.transform(columns)
        if isinstance(self.explainer, PictureExplainer):
            return self.explainer.explain(self.fields[0], self._scores(X))
        assert isinstance(self.preprocessor, Preprocessor)
        return self.explainer.explain(
            X, columns, self.preprocessor, cast(FieldRepresentation, self.representation), self.classifier, n_top
        )

    def contributions(self, columns: Columns) -> Contributions:
        """Return what every field adds to the score of every row; with the base score it sums to the score."""
        X = self.preprocessor.transform(columns)
        if isinstance(self.explainer, PictureExplainer):
            name, values = self.fields[0], self._scores(X) - self.explainer.usual_score
            return Contributions(values[:, None], self.explainer.usual_score, {name: [None] * len(X)})
        assert isinstance(self.preprocessor, Preprocessor)
        return self.explainer.contributions(
            X, self.preprocessor, cast(FieldRepresentation, self.representation), self.classifier
        )

    def coordinates(self, columns: Columns) -> NDArray[np.float32]:
        """Return rows as points that lie near each other where the model sees records that are alike, ``(n, d)``.

        Of fields the scaled columns, of pictures the embedding. Equal rows have equal coordinates, in any batch.
        """
        X = self.preprocessor.transform(columns)
        Z = self.representation.embed(X) if self.takes_pictures else X
        return np.ascontiguousarray(Z.reshape(len(Z), -1), dtype=np.float32)

    @property
    def takes_pictures(self) -> bool:
        """Whether its rows are pictures, of which it knows :meth:`heat_maps`."""
        return isinstance(self.explainer, PictureExplainer)

    def heat_maps(self, columns: Columns) -> NDArray[np.float32]:
        """Return how unusual each place of its pictures is, ``(n, h, w)``: 0 is the median place, higher is less usual.

        Raises
        ------
        ValueError
            If its rows are no pictures.
        """
        if not isinstance(self.explainer, PictureExplainer):
            raise ValueError(f"the model has no heat maps: it scores the fields {', '.join(self.fields)}; use explain")
        X = self.preprocessor.transform(columns)
        return self.explainer.heat_maps(X, cast(PictureRepresentation, self.representation))

    def _scores(self, X: NDArray[Any]) -> NDArray[np.float64]:
        return by_chunks(lambda rows: self.classifier.score(self.representation.embed(rows)), X)

    def with_false_alarm_rate(self, rate: float) -> Model:
        """Return the same model with another α."""
        return replace(self, false_alarm_rate=rate)

    def on(self, device: str = "auto", n_threads: int | None = None) -> Model:
        """Return the same model, which scores on a device; fields are scored on the processor wherever that is.

        Parameters
        ----------
        device
            ``auto``: CUDA if there is one, else the processor; ``cpu``, ``cuda``, ``cuda:1``, …
        n_threads
            Of the processor, for pictures; None: as many as PyTorch has.

        Raises
        ------
        ValueError
            If there is no such device.
        """
        if not self.takes_pictures:
            return self
        from models.devices import resolve

        representation = cast(PictureRepresentation, self.representation)
        return replace(self, representation=representation.on(resolve(device), n_threads))

    def canary(self) -> dict[str, NDArray[Any]]:
        """Return made-up rows to check a loaded copy with; no row of the training data is in it."""
        return self.preprocessor.canary()

    def describe(self) -> dict[str, Any]:
        """Return what people want to know of it, as JSON."""
        return {
            "representation": self.representation_name,
            "classifier": self.classifier.name,
            **self.preprocessor.describe(),
            "false_alarm_rate": self.false_alarm_rate,
            **self.facts,
        }
