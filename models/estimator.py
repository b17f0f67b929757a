"""SRRDetector, the public estimator: scikit-learn's and PyOD's words for training and scoring a model on arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from models.detector import Model, Scores
from models.state import Columns
from models.training import TrainingConfig, train


class SRRDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Find anomalies in rows of which some, unlabelled, are anomalies, by self-supervise, refine, repeat.

    Differs from scikit-learn's outlier detectors as PyOD does: `decision_function` is higher for anomalies, and
    `predict` says 1 for an anomaly and 0 for a normal row.

    Parameters
    ----------
    representation
        ``goad`` or ``identity``.
    representation_options
        Its keyword arguments, such as ``{"n_steps": 512}``.
    contamination
        Share of anomalies among the training rows, 0 < share < 0.5, or ``auto`` to estimate it.
    n_subsets
        K of the ensemble that refines the rows.
    refine_rounds
        How often one refinement judges all rows.
    shrinkage
        Of covariances, above 0, at most 1; None: what suits the representation.
    false_alarm_rate
        α: the share of normal rows that may be flagged.
    random_state
        A number, a generator or None, as in scikit-learn.
    device
        ``auto``, ``cpu``, ``cuda``, …

    Attributes
    ----------
    model_ : models.detector.Model
        What scores; it can be saved with :func:`models.persistence.save`.
    decision_scores_ : ``(n,)`` scores of the training rows, higher = more anomalous.
    labels_ : ``(n,)`` 1 for training rows that are flagged.
    threshold_ : the score from which on a row is flagged.
    refined_mask_ : ``(n,)`` True for the training rows that refinement keeps.
    contamination_estimate_ : estimated share of anomalies among the training rows.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(600, 4))
    >>> X[:12] += 8.0
    >>> detector = SRRDetector(representation="identity", random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0, 0.0, 0.0], [8.0, 8.0, 8.0, 8.0]]).tolist()
    [0, 1]
    >>> bool(detector.refined_mask_[:12].any())
    False
    """

    def __init__(
        self,
        representation: str = "goad",
        *,
        representation_options: Mapping[str, Any] | None = None,
        contamination: float | str = "auto",
        n_subsets: int = 5,
        refine_rounds: int = 5,
        shrinkage: float | None = None,
        false_alarm_rate: float = 0.005,
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
        device: str = "auto",
    ) -> None:
        self.representation = representation
        self.representation_options = representation_options
        self.contamination = contamination
        self.n_subsets = n_subsets
        self.refine_rounds = refine_rounds
        self.shrinkage = shrinkage
        self.false_alarm_rate = false_alarm_rate
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: object = None) -> Self:
        """Learn from rows without labels.

        Parameters
        ----------
        X
            ``(n, d)`` array, or a pandas frame, whose object, string and category columns are categories. NaN: missing.
        y
            Not used.
        """
        columns = self._columns(X, is_fit=True)
        contamination = self.contamination
        if isinstance(contamination, str) and contamination != "auto":
            raise ValueError(f"contamination is {contamination!r}; allowed: 'auto' or a share above 0 and below 0.5")
        config = TrainingConfig(
            representation=self.representation,
            representation_options=dict(self.representation_options or {}),
            n_subsets=self.n_subsets,
            contamination=None if isinstance(contamination, str) else float(contamination),
            refine_rounds=self.refine_rounds,
            shrinkage=self.shrinkage,
            false_alarm_rate=self.false_alarm_rate,
        )
        trained = train(columns, config, seed=_seed(self.random_state), device=self.device)
        scores = trained.model.score(columns)
        self.model_ = trained.model
        self.report_ = trained.report
        self.decision_scores_ = scores.score
        self.labels_ = scores.flagged.astype(np.int64)
        self.threshold_ = trained.model.calibration.score_at(self.false_alarm_rate)
        self.refined_mask_ = trained.kept
        self.contamination_estimate_ = trained.report.contamination_ratio
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return scores ``(n,)``, higher = more anomalous."""
        return self._score(X).score

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return the opposite of :meth:`decision_function`, as scikit-learn's detectors do."""
        return -self.decision_function(X)

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return 1 for rows that are flagged, else 0, ``(n,)``."""
        return self._score(X).flagged.astype(np.int64)

    def fit_predict(self, X: Any, y: object = None, **kwargs: Any) -> NDArray[np.int64]:
        """Learn, and return the labels of the same rows."""
        return self.fit(X, y).labels_

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return ``(n, 2)``: the p-value, and 1 - p-value, the share of normal rows scoring lower."""
        p_value = self._score(X).p_value
        return np.column_stack([p_value, 1.0 - p_value])

    def _score(self, X: Any) -> Scores:
        check_is_fitted(self, "model_")
        model: Model = self.model_
        return model.score(self._columns(X, is_fit=False))

    def _columns(self, X: Any, *, is_fit: bool) -> Columns:
        """Return columns by name; a frame's are its own, an array's are x0, x1, …"""
        if hasattr(X, "columns") and hasattr(X, "dtypes"):
            validate_data(self, X, reset=is_fit, skip_check_array=True)
            return {str(name): _column(X[name]) for name in X.columns}
        array = validate_data(
            self, X, reset=is_fit, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=1
        )
        return {f"x{index}": np.ascontiguousarray(array[:, index]) for index in range(array.shape[1])}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def _column(series: Any) -> NDArray[Any]:
    """Return a frame's column as numbers, or as str and None where its dtype is none of numbers."""
    if series.dtype.kind in "fiub" and not hasattr(series, "cat"):
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    column = np.empty(len(series), dtype=object)
    is_missing = series.isna().to_numpy()
    column[:] = [None if missing else str(value) for value, missing in zip(series, is_missing, strict=True)]
    return column


def _seed(random_state: Any) -> int:
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    return int(np.random.default_rng(random_state).integers(2**31)) if random_state is None else int(random_state)
