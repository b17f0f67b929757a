"""The same models in other libraries' words: scikit-learn, PyOD, River."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from river import evaluate, metrics, stream
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from models.estimator import SRRDetector
from models.evaluation import roc_auc
from models.presets import PRESETS
from models.river_adapter import RiverSRR

EXPECTED_FAILURES = {
    "check_outliers_train": "predict says 1 and 0, as PyOD does, not -1 and 1",
    "check_outliers_fit_predict": "predict says 1 and 0, as PyOD does, not -1 and 1",
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([SRRDetector(random_state=0)], expected_failed_checks=lambda _: EXPECTED_FAILURES)
def test_scikit_learns_checks_pass(estimator: SRRDetector, check: Any) -> None:
    check(estimator)


@pytest.fixture
def X() -> np.ndarray:  # noqa: N802
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 4))
    rows[:25] += 7.0 * rng.choice([-1.0, 1.0], size=(25, 4))
    return rows


def test_it_speaks_pyods_words(X: np.ndarray) -> None:
    detector = SRRDetector(random_state=0).fit(X)
    score = detector.decision_function(X)
    np.testing.assert_array_equal(score, detector.decision_scores_)
    np.testing.assert_array_equal(detector.score_samples(X), -score)
    np.testing.assert_array_equal(detector.predict(X), detector.labels_)
    assert set(np.unique(detector.labels_)) == {0, 1}
    assert detector.labels_[:25].mean() > 0.9
    assert detector.refined_mask_[:25].mean() < 0.1
    assert detector.contamination_estimate_ == pytest.approx(0.05, abs=0.03)
    np.testing.assert_array_equal(score >= detector.threshold_, detector.labels_ == 1)
    probability = detector.predict_proba(X)
    assert probability.shape == (500, 2)
    np.testing.assert_allclose(probability.sum(axis=1), 1.0)


def test_the_same_random_state_gives_the_same_scores(X: np.ndarray) -> None:
    detector = SRRDetector(
        "goad", representation_options={"n_transforms": 8, "n_steps": 40}, random_state=3, device="cpu"
    )
    np.testing.assert_array_equal(detector.fit(X).decision_scores_, clone(detector).fit(X).decision_scores_)
    for random_state in (None, np.random.default_rng(0), np.random.RandomState(0)):
        assert SRRDetector(random_state=random_state).fit(X).labels_.shape == (500,)


def test_a_frame_keeps_its_names_and_categories(X: np.ndarray) -> None:
    frame = pd.DataFrame(X, columns=list("abcd"))
    frame["kind"] = np.where(np.arange(500) % 2, "even", "odd")
    frame["level"] = pd.Categorical(np.where(np.arange(500) % 3, "low", "high"))
    frame.loc[3, "a"] = np.nan
    frame.loc[4, "kind"] = None
    detector = SRRDetector(random_state=0).fit(frame)
    assert detector.model_.fields == ("a", "b", "c", "d", "kind", "level")
    assert detector.feature_names_in_.tolist() == ["a", "b", "c", "d", "kind", "level"]
    usual = frame.iloc[[200]].assign(a=0.0, b=0.0, c=0.0, d=0.0)
    odd = usual.assign(kind="neither")
    assert detector.decision_function(odd)[0] > detector.decision_function(usual)[0]
    with pytest.raises(ValueError, match="feature names"):
        detector.predict(frame.rename(columns={"a": "z"}))


def test_a_polars_frame_says_the_same_as_a_pandas_one(X: np.ndarray) -> None:
    frame = pd.DataFrame(X, columns=list("abcd"))
    frame["kind"] = np.where(np.arange(500) % 2, "even", "odd")
    frame["is_even"] = np.arange(500) % 2 == 0
    frame.loc[3, "a"] = np.nan
    frame.loc[4, "kind"] = None
    polars = pl.DataFrame({str(name): [None if pd.isna(v) else v for v in frame[name]] for name in frame.columns})
    assert polars["a"].null_count() == 1
    one, two = (SRRDetector(random_state=0).fit(rows) for rows in (frame, polars))
    assert two.model_.fields == one.model_.fields
    np.testing.assert_array_equal(one.decision_scores_, two.decision_scores_)
    np.testing.assert_array_equal(one.decision_function(polars), two.decision_function(frame))


def test_it_explains_every_score_field_by_field(X: np.ndarray) -> None:
    detector = SRRDetector(random_state=0).fit(pd.DataFrame(X, columns=list("abcd")))
    row = pd.DataFrame([[0.0, 0.0, 9.0, 0.0]], columns=list("abcd"))
    explained = detector.explain(row)
    assert explained.values.shape == (1, 4)
    assert explained.values[0].argmax() == 2
    assert explained.values.sum() + explained.base == pytest.approx(detector.decision_function(row)[0])
    assert abs(explained.expected["c"][0]) < 2.0


def test_what_is_given_goes_over_the_preset() -> None:
    assert SRRDetector().config() == PRESETS["default"]
    config = SRRDetector("goad", n_subsets=3, gamma="otsu", refine="final", scaling="asinh").config()
    changes = {"n_subsets": 3, "gamma": "otsu", "refine": "final", "scaling": "asinh"}
    assert config == replace(PRESETS["goad"], **changes)
    # Options of the preset's blend mean nothing to another classifier.
    assert SRRDetector(classifier="knn").config().ensemble_options == {}
    assert SRRDetector("goad", representation="identity").config().representation_options == {}
    with pytest.raises(ValueError, match="preset is 'best'; allowed: default, goad, paper, paper_kdd"):
        SRRDetector("best").config()


def test_every_row_has_its_votes(X: np.ndarray) -> None:
    detector = SRRDetector(random_state=0).fit(X)
    assert detector.votes_.shape == (500,)
    np.testing.assert_array_equal(detector.refined_mask_, detector.votes_ == 0)
    assert detector.votes_[:25].mean() > 4.0 > 1.0 > detector.votes_[25:].mean()


def test_a_known_contamination_sets_gamma(X: np.ndarray) -> None:
    assert SRRDetector(contamination=0.04, random_state=0).fit(X).report_.gamma == 0.08
    with pytest.raises(ValueError, match="contamination is 'some'; allowed: 'auto' or a share"):
        SRRDetector(contamination="some").fit(X)


@pytest.fixture
def pictures(make_pictures: Any) -> np.ndarray:
    made = make_pictures(120)[0]
    made[:8] = np.random.default_rng(0).integers(0, 256, size=(8, 16, 16, 1), dtype=np.uint8)
    return np.asarray(made)


@pytest.mark.parametrize("preset", ["pixels", "cutpaste"])
def test_pictures_are_rows_too(preset: str, pictures: np.ndarray) -> None:
    options = {"width": 8, "head_width": 8, "n_epochs": 1, "batch_rows": 16} if preset == "cutpaste" else None
    detector = SRRDetector(preset, representation_options=options, random_state=0, device="cpu").fit(pictures)
    assert detector.model_.fields == ("image",)
    assert detector.n_features_in_ == 16 * 16
    score = detector.decision_function(pictures)
    np.testing.assert_array_equal(score, detector.decision_scores_)
    np.testing.assert_array_equal(detector.score_samples(pictures), -score)
    np.testing.assert_array_equal(detector.predict(pictures), detector.labels_)
    np.testing.assert_array_equal(score >= detector.threshold_, detector.labels_ == 1)
    assert roc_auc(np.arange(120) < 8, score) > 0.9
    assert detector.refined_mask_[:8].mean() < 0.5 < detector.refined_mask_[8:].mean()
    np.testing.assert_allclose(detector.predict_proba(pictures).sum(axis=1), 1.0)
    explained = detector.explain(pictures[:3])
    np.testing.assert_allclose(explained.values[:, 0] + explained.base, score[:3])
    maps = detector.heat_maps(pictures[:3])
    assert maps.shape == (3, 16, 16)
    np.testing.assert_array_equal(maps, detector.model_.heat_maps({"image": pictures[:3]}))
    assert detector.predict(pictures[:0]).shape == (0,)


def test_grey_pictures_need_no_axis_of_channels(pictures: np.ndarray) -> None:
    with_axis, without = (SRRDetector("pixels", random_state=0).fit(X) for X in (pictures, pictures[..., 0]))
    np.testing.assert_array_equal(with_axis.decision_scores_, without.decision_scores_)
    np.testing.assert_array_equal(with_axis.predict(pictures[..., 0]), without.predict(pictures))
    np.testing.assert_array_equal(without.predict([picture[..., 0] for picture in pictures]), without.labels_)


def test_the_same_random_state_gives_the_same_scores_of_pictures(make_pictures: Any) -> None:
    colour = make_pictures(60, n_channels=3)[0]
    options = {"width": 8, "head_width": 8, "n_epochs": 1, "batch_rows": 16}
    detector = SRRDetector("cutpaste", representation_options=options, random_state=3, device="cpu")
    np.testing.assert_array_equal(detector.fit(colour).decision_scores_, clone(detector).fit(colour).decision_scores_)
    assert detector.n_features_in_ == 16 * 16 * 3


@pytest.mark.parametrize(
    ("preset", "make", "message"),
    [
        ("pixels", lambda X: X / 255.0, r"X is float64 of shape \(120, 16, 16, 1\); needed for pictures: uint8"),
        ("pixels", lambda X: X.astype(np.int64), "X is int64 of shape"),
        ("pixels", lambda X: X.reshape(120, 256), r"X is uint8 of shape \(120, 256\); needed for pictures: uint8"),
        ("pixels", lambda X: pd.DataFrame(X.reshape(120, 256)), r"X is uint8 of shape \(120, 256\); needed"),
        ("pixels", lambda X: np.repeat(X, 2, axis=3), "with 2 channels; allowed: 1"),
        (
            "default",
            lambda X: X,
            r"X is uint8 of shape \(120, 16, 16, 1\): pictures, .*; presets for pictures: pixels,",
        ),
        ("default", lambda X: X[..., 0], r"X is uint8 of shape \(120, 16, 16\): pictures, where fields"),
        ("default", lambda X: X / 255.0, "Found array with dim 4"),
    ],
)
def test_rows_of_the_other_kind_are_refused(preset: str, make: Any, message: str, pictures: np.ndarray) -> None:
    with pytest.raises(ValueError, match=message):
        SRRDetector(preset, random_state=0).fit(make(pictures))


def test_what_was_fitted_decides_what_can_be_scored(pictures: np.ndarray, X: np.ndarray) -> None:
    of_pictures, of_fields = SRRDetector("pixels", random_state=0).fit(pictures), SRRDetector(random_state=0).fit(X)
    with pytest.raises(ValueError, match="X has 240 features, but SRRDetector is expecting 256 features as input"):
        of_pictures.predict(pictures[:, 1:])
    with pytest.raises(
        ValueError, match=r"is uint8 of shape \(120, 8, 32, 1\); needed: uint8 of shape \(n, 16, 16, 1\)"
    ):
        of_pictures.predict(pictures.reshape(120, 8, 32))
    with pytest.raises(ValueError, match="needed for pictures: uint8"):
        of_pictures.predict(X)
    with pytest.raises(ValueError, match=r"presets for pictures: pixels, cutpaste"):
        of_fields.predict(pictures)
    with pytest.raises(ValueError, match="no heat maps: it scores the fields x0, x1, x2, x3; use explain"):
        of_fields.heat_maps(X)
    for act in ("predict", "heat_maps"):
        with pytest.raises(NotFittedError):
            getattr(SRRDetector("pixels"), act)(pictures)


def test_a_detector_of_frames_can_be_fitted_to_pictures_and_back(pictures: np.ndarray, X: np.ndarray) -> None:
    frame = pd.DataFrame(X, columns=list("abcd"))
    detector = SRRDetector(random_state=0).fit(frame)
    detector.set_params(preset="pixels").fit(pictures)
    assert detector.n_features_in_ == 256
    assert not hasattr(detector, "feature_names_in_")
    detector.set_params(preset="default").fit(frame)
    assert detector.n_features_in_ == 4


def test_river_evaluates_it_progressively() -> None:
    rng = np.random.default_rng(0)
    numbers, is_anomaly = rng.normal(size=(900, 3)), rng.random(900) < 0.05
    numbers[:, 1] += numbers[:, 0]
    numbers[is_anomaly] += [4.0, -4.0, 0.0]
    records = [{"a": a, "b": b, "c": c, "kind": "xy"[int(c > 0)]} for a, b, c in numbers]
    detector = RiverSRR(window_size=100, train_every=200)
    data = stream.iter_array(np.arange(900)[:, None], is_anomaly, feature_names=["i"])
    stream_of_records = ((records[row["i"]], label) for row, label in data)
    metric = evaluate.progressive_val_score(stream_of_records, detector, metrics.ROCAUC(n_thresholds=200))
    # An anomaly among the first 100 records, before the first model, gets 0.0 like every record there.
    assert metric.get() > 0.8


def test_river_scores_are_0_before_the_first_model_and_shares_after_it() -> None:
    rng = np.random.default_rng(0)
    detector = RiverSRR(window_size=100, train_every=50)
    assert detector.score_one({"a": 1.0}) == 0.0
    for value in rng.normal(size=100):
        detector.learn_one({"a": value, "kind": "x"})
    first = detector.model
    assert 0.0 <= detector.score_one({"a": 0.0, "kind": "x"}) < detector.score_one({"a": 6.0, "kind": "x"}) <= 1.0
    assert 0.0 <= detector.score_one({"kind": None}) <= 1.0
    for value in rng.normal(size=50):
        detector.learn_one({"a": value, "kind": "x"})
    assert detector.model is not first


def test_river_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="window_size is 10; allowed: whole numbers from 50"):
        RiverSRR(window_size=10)
    with pytest.raises(ValueError, match="train_every is 0"):
        RiverSRR(train_every=0)
