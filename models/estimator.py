"""SRRDetector, the public estimator: scikit-learn's and PyOD's words for models of arrays, frames or pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from models.detector import Model, Scores
from models.presets import PRESETS
from models.state import Columns
from models.training import TrainingConfig, train

if TYPE_CHECKING:
    from models.explanation import Contributions

PICTURE = "image"
"""The one column's name where rows are pictures."""


class SRRDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Find anomalies in rows of which some, unlabelled, are anomalies, by self-supervise, refine, repeat.

    Differs from scikit-learn's outlier detectors as PyOD does: `decision_function` is higher for anomalies, and
    `predict` says 1 for an anomaly and 0 for a normal row.

    Parameters
    ----------
    preset
        A key of :data:`models.presets.PRESETS`: ``default``, closed form and quick; ``goad``, self-supervised;
        ``paper`` and ``paper_kdd``, as published; ``pixels``, ``cutpaste``, ``contrastive`` and others for pictures.
        Every parameter below is the preset's where it is None.
    contamination
        Share of anomalies among the training rows, 0 < share < 0.5, or ``auto`` to estimate it.
    representation, representation_options, classifier, classifier_options, ensemble_classifier, ensemble_options
        What is learned, and the one-class classifiers on it: see :class:`models.training.TrainingConfig`, as for all
        that follow. Options are the preset's only if their representation or classifier is.
    n_subsets, gamma, vote, removal, refine_rounds, refine, scorer
        How the rows are refined.
    scaling, calibration_ratio
        How fields are scaled; which share of the rows is held out to calibrate on.
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
    votes_ : ``(n,)`` how many members of the ensemble reject a training row.
    report_ : models.training.TrainingReport
        What the training did.
    contamination_estimate_ : estimated share of anomalies among the training rows.
    n_features_in_ : columns of a matrix or frame; of pictures, the values that one has.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(600, 4))
    >>> X[:12] += 8.0
    >>> detector = SRRDetector(random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0, 0.0, 0.0], [8.0, 8.0, 8.0, 8.0]]).tolist()
    [0, 1]
    >>> bool(detector.refined_mask_[:12].any())
    False

    Pictures, ``(n, h, w)`` grey or ``(n, h, w, 3)`` colour:

    >>> pictures = rng.integers(100, 120, size=(200, 16, 16), dtype=np.uint8)
    >>> detector = SRRDetector("pixels", random_state=0).fit(pictures)
    >>> pictures[0, :4, 8:] = 255
    >>> detector.predict(pictures[:2]).tolist()
    [1, 0]
    >>> row, column = divmod(int(detector.heat_maps(pictures[:1]).argmax()), 16)
    >>> row < 4 and column >= 8
    True
    """

    def __init__(
        self,
        preset: str = "default",
        *,
        contamination: float | str = "auto",
        representation: str | None = None,
        representation_options: Mapping[str, Any] | None = None,
        classifier: str | None = None,
        classifier_options: Mapping[str, Any] | None = None,
        ensemble_classifier: str | None = None,
        ensemble_options: Mapping[str, Any] | None = None,
        n_subsets: int | None = None,
        gamma: float | str | None = None,
        vote: str | None = None,
        removal: str | None = None,
        refine_rounds: int | None = None,
        refine: str | None = None,
        scorer: str | None = None,
        scaling: str | None = None,
        calibration_ratio: float | None = None,
        false_alarm_rate: float = 0.005,
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
        device: str = "auto",
    ) -> None:
        self.preset = preset
        self.contamination = contamination
        self.representation = representation
        self.representation_options = representation_options
        self.classifier = classifier
        self.classifier_options = classifier_options
        self.ensemble_classifier = ensemble_classifier
        self.ensemble_options = ensemble_options
        self.n_subsets = n_subsets
        self.gamma = gamma
        self.vote = vote
        self.removal = removal
        self.refine_rounds = refine_rounds
        self.refine = refine
        self.scorer = scorer
        self.scaling = scaling
        self.calibration_ratio = calibration_ratio
        self.false_alarm_rate = false_alarm_rate
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: object = None) -> Self:
        """Learn from rows without labels.

        Parameters
        ----------
        X
            ``(n, d)`` array, or a pandas or polars frame, whose columns of text and categories are categories. NaN,
            None and null: missing. With a preset of pictures: ``(n, h, w)`` or ``(n, h, w, channels)`` uint8.
        y
            Not used.
        """
        columns = self._columns(X, is_fit=True)
        config = self.config()
        trained = train(columns, config, seed=_seed(self.random_state), device=self.device)
        scores = trained.model.score(columns)
        self.model_ = trained.model
        self.report_ = trained.report
        self.decision_scores_ = scores.score
        self.votes_ = trained.votes
        self.labels_ = scores.flagged.astype(np.int64)
        self.threshold_ = trained.model.calibration.score_at(self.false_alarm_rate)
        self.refined_mask_ = trained.kept
        self.contamination_estimate_ = trained.report.contamination_ratio
        return self

    def config(self) -> TrainingConfig:
        """Return how :meth:`fit` trains: the preset, with what is given here over it; ValueError if it cannot be."""
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}; allowed: {', '.join(PRESETS)}")
        contamination = self.contamination
        if isinstance(contamination, str) and contamination != "auto":
            raise ValueError(f"contamination is {contamination!r}; allowed: 'auto' or a share above 0 and below 0.5")
        preset = PRESETS[self.preset]
        given = {
            name: getattr(self, name)
            for name in (field.name for field in fields(TrainingConfig))
            if getattr(self, name, None) is not None and name != "contamination"
        }
        for name in ("representation", "classifier"):
            if name in given and given[name] != getattr(preset, name):
                given.setdefault(f"{name}_options", {})
        if given.get("classifier", preset.classifier) != preset.classifier or "ensemble_classifier" in given:
            given.setdefault("ensemble_options", {})
        return replace(preset, **given, contamination=None if isinstance(contamination, str) else float(contamination))

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

    def explain(self, X: Any) -> Contributions:
        """Return what each field adds to the score of each row, and what it would be if it were like the others.

        Returns
        -------
        Contributions
            ``values`` ``(n, n_fields)``, whose rows sum to the score less ``base``; ``expected`` by field.
        """
        return self._fitted().contributions(self._columns(X, is_fit=False))

    def heat_maps(self, X: Any) -> NDArray[np.float32]:
        """Return how unusual each place of pictures is, ``(n, h, w)``: 0 is the median place, higher is less usual.

        Raises
        ------
        ValueError
            If it was fitted to fields.
        """
        return self._fitted().heat_maps(self._columns(X, is_fit=False))

    def _score(self, X: Any) -> Scores:
        return self._fitted().score(self._columns(X, is_fit=False))

    def _fitted(self) -> Model:
        check_is_fitted(self, "model_")
        model: Model = self.model_
        return model

    def _columns(self, X: Any, *, is_fit: bool) -> Columns:
        """Return columns by name; a frame's are its own, an array's are x0, x1, …, pictures are one."""
        if self.config().takes_pictures if is_fit else self._fitted().takes_pictures:
            return {PICTURE: self._pictures(X, is_fit=is_fit)}
        if getattr(X, "ndim", 2) in (3, 4) and X.dtype == np.uint8:
            suiting = ", ".join(name for name, config in PRESETS.items() if config.takes_pictures)
            raise ValueError(
                f"X is {X.dtype} of shape {X.shape}: pictures, where fields (n, d) are needed; presets for pictures: "
                f"{suiting}"
            )
        if hasattr(X, "columns") and hasattr(X, "dtypes"):
            validate_data(self, X, reset=is_fit, skip_check_array=True)
            take = _polars_column if hasattr(X, "get_column") else _column
            return {str(name): take(X[name]) for name in X.columns}
        array = validate_data(
            self, X, reset=is_fit, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=1
        )
        return {f"x{index}": np.ascontiguousarray(array[:, index]) for index in range(array.shape[1])}

    def _pictures(self, X: Any, *, is_fit: bool) -> NDArray[np.uint8]:
        """Return pictures as ``(n, h, w, channels)``; ValueError if they are none."""
        pictures = np.asarray(X)
        if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4):
            raise ValueError(
                f"X is {pictures.dtype} of shape {pictures.shape}; needed for pictures: uint8 (0 to 255) of shape "
                "(n, h, w) or (n, h, w, channels)"
            )
        flat = pictures.reshape(len(pictures), math.prod(pictures.shape[1:]))
        validate_data(self, flat, reset=is_fit, skip_check_array=True)
        return pictures if pictures.ndim == 4 else pictures[..., None]

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


def _polars_column(series: Any) -> NDArray[Any]:
    """The same for polars, whose missing values are null."""
    if series.dtype.is_numeric() or str(series.dtype) == "Boolean":
        return np.array([np.nan if value is None else float(value) for value in series], dtype=np.float64)
    column = np.empty(len(series), dtype=object)
    column[:] = [None if value is None else str(value) for value in series]
    return column


def _seed(random_state: Any) -> int:
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    return int(np.random.default_rng(random_state).integers(2**31)) if random_state is None else int(random_state)
