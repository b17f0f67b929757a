"""A detector for River's loops: one record in, one score out, retrained from a sliding window."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river.base import AnomalyDetector

from models.detector import Model
from models.state import Columns
from models.training import TrainingConfig, train


class RiverSRR(AnomalyDetector):
    """Self-supervise, refine, repeat behind ``learn_one`` and ``score_one``.

    Parameters
    ----------
    window_size
        The latest records that are trained on; the first training waits for so many.
    train_every
        Records between two trainings.
    representation, representation_options
        As in :class:`models.training.TrainingConfig`.
    seed
        Of the first training; each further one counts on.

    Notes
    -----
    River's protocol has no "not ready": before the first model the score is 0.0, as of River's own detectors.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> detector = RiverSRR(window_size=200, train_every=100)
    >>> for a, b in rng.normal(size=(300, 2)):
    ...     detector.learn_one({"a": a, "b": b})
    >>> detector.score_one({"a": 9.0, "b": -9.0}) > 0.99 > detector.score_one({"a": 0.0, "b": 0.0})
    True
    """

    def __init__(
        self,
        window_size: int = 1000,
        train_every: int = 500,
        representation: str = "identity",
        representation_options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        if window_size < 50:
            raise ValueError(f"window_size is {window_size!r}; allowed: whole numbers from 50 on")
        if train_every < 1:
            raise ValueError(f"train_every is {train_every!r}; allowed: whole numbers from 1 on")
        self.window_size = window_size
        self.train_every = train_every
        self.representation = representation
        self.representation_options = representation_options
        self.seed = seed
        self.model: Model | None = None
        self._config = TrainingConfig(
            representation=representation, representation_options=dict(representation_options or {})
        )
        self._window: deque[dict[Hashable, Any]] = deque(maxlen=window_size)
        self._n_since_training = 0
        self._n_trainings = 0

    def learn_one(self, x: dict[Hashable, Any]) -> None:
        """Add a record to the window and train if it is time."""
        self._window.append(dict(x))
        self._n_since_training += 1
        due = self.window_size if self.model is None else self.train_every
        if self._n_since_training < due:
            return
        trained = train(_columns(list(self._window)), self._config, seed=self.seed + self._n_trainings, device="cpu")
        self.model = trained.model
        self._n_trainings += 1
        self._n_since_training = 0

    def score_one(self, x: dict[Hashable, Any]) -> float:
        """Return 1 - p-value, 0 to 1; 0.0 before the first model."""
        if self.model is None:
            return 0.0
        columns = {
            part: _column([x.get(part)], is_categorical=part in self._categorical(self.model))
            for part in self.model.fields
        }
        return float(1.0 - self.model.score(columns).p_value[0])

    @staticmethod
    def _categorical(model: Model) -> set[str]:
        fields = getattr(model.preprocessor, "fields", ())  # rows here are never pictures
        return {part.name for part in fields if hasattr(part, "categories")}


def _columns(records: list[dict[Hashable, Any]]) -> Columns:
    """Return the records' fields as columns; a field that is text anywhere is categorical."""
    names = dict.fromkeys(name for record in records for name in record)
    values = {name: [record.get(name) for record in records] for name in names}
    return {
        str(name): _column(column, is_categorical=any(isinstance(value, str) for value in column))
        for name, column in values.items()
    }


def _column(values: list[Any], *, is_categorical: bool) -> NDArray[Any]:
    if is_categorical:
        column = np.empty(len(values), dtype=object)
        column[:] = [None if value is None else str(value) for value in values]
        return column
    return np.array([_number(value) for value in values], dtype=np.float64)


def _number(value: Any) -> float:
    """Return a number, NaN for what is missing; text where numbers were learned is as good as missing."""
    return float("nan") if value is None or isinstance(value, str) else float(value)
