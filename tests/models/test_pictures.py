"""Columns of pictures: what is refused, what a model of them promises, where in them its scores come from."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.numpy
import torch
from scipy.stats import multivariate_normal

from models.evaluation import roc_auc
from models.explanation import FieldContribution
from models.heat_maps import PictureExplainer, enlarged
from models.persistence import load, model_from_parts, model_to_parts, save
from models.pictures import N_CANARY, PicturePreprocessor, is_picture
from models.preprocessing import row_count
from models.state import State
from models.training import Trained, TrainingConfig, train

TINY: dict[str, Any] = {"width": 8, "batch_rows": 16, "n_epochs": 1}
QUICK = {
    "pixels": TrainingConfig(representation="pixels", classifier="gde"),
    "cutpaste": TrainingConfig(
        representation="cutpaste",
        representation_options={**TINY, "head_width": 8},
        classifier="gde",
        classifier_options={"covariance": "ledoit_wolf"},
    ),
    "robust_autoencoder": TrainingConfig(
        representation="robust_autoencoder", representation_options=TINY, classifier="energy"
    ),
}
FIELDS = TrainingConfig()


@pytest.fixture(scope="module", params=sorted(QUICK))
def config(request: pytest.FixtureRequest) -> TrainingConfig:
    return QUICK[request.param]


@pytest.fixture(scope="module")
def trained(config: TrainingConfig, make_pictures: Any) -> Trained:
    return train({"image": make_pictures(120, contamination=0.1)[0]}, config, seed=1, device="cpu")


@pytest.fixture(scope="module")
def fresh(make_pictures: Any) -> dict[str, np.ndarray]:
    return {"image": make_pictures(70, seed=5, contamination=0.3)[0]}


def column(*shape: int, dtype: Any = np.uint8) -> dict[str, np.ndarray]:
    return {"image": np.zeros(shape, dtype=dtype)}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {**column(3, 8, 8, 1), "x": np.zeros(3)},
            r"columns are \['image', 'x'\]; allowed with pictures: their column",
        ),
        ({}, r"columns are \[\]; allowed with pictures: their column alone"),
        (column(0, 8, 8, 1), "column 'image' has no picture to learn from"),
        (column(3, 8, 8, 1, dtype=np.float32), r"'image' is float32 of shape \(3, 8, 8, 1\); needed: uint8"),
        (column(3, 8, 8, 2), "has pictures of 8 x 8 pixels with 2 channels; allowed: 1 .grey. or 3 .colour."),
        (column(3, 8, 8, 4), "with 4 channels; allowed: 1 .grey. or 3"),
        (column(3, 0, 8, 1), "has pictures of 0 x 8 pixels"),
        (column(3, 8, 8), r"'image' is uint8 of shape \(3, 8, 8\); needed: uint8 of shape \(n, h, w, channels\)"),
    ],
)
def test_columns_that_are_no_pictures_to_learn_from_are_refused(columns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PicturePreprocessor.fit(columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"photo": np.zeros((2, 8, 9, 1), np.uint8)}, r"columns: 'image' is missing; there are \['photo'\]"),
        (column(2, 9, 8, 1), r"is uint8 of shape \(2, 9, 8, 1\); needed: uint8 of shape \(n, 8, 9, 1\)"),
        (column(2, 8, 9, 3), r"needed: uint8 of shape \(n, 8, 9, 1\)"),
        (column(2, 8, 9), r"needed: uint8 of shape \(n, 8, 9, 1\)"),
        (column(2, 8, 9, 1, dtype=np.int64), r"'image' is int64"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PicturePreprocessor.fit(column(2, 8, 9, 1)).transform(columns)


def test_pictures_are_passed_on_as_they_are_also_none() -> None:
    fitted = PicturePreprocessor.fit(column(2, 8, 9, 3))
    pictures = np.random.default_rng(0).integers(0, 256, size=(5, 8, 9, 3), dtype=np.uint8)
    assert fitted.transform({"image": pictures, "other": np.zeros(5)}) is pictures
    assert fitted.transform(column(0, 8, 9, 3)).shape == (0, 8, 9, 3)
    assert (fitted.names, fitted.shape) == (("image",), (8, 9, 3))


@pytest.mark.parametrize(("h", "w", "c"), [(1, 1, 1), (3, 5, 3), (8, 8, 1), (20, 9, 3), (1, 40, 1)])
def test_canary_pictures_are_of_the_shape_that_was_trained_on_and_different_from_each_other(
    h: int, w: int, c: int
) -> None:
    fitted = PicturePreprocessor.fit(column(2, h, w, c))
    canary = fitted.canary()["image"]
    assert canary.shape == (N_CANARY, h, w, c)
    assert canary.dtype == np.uint8
    assert canary.flags.c_contiguous
    assert fitted.transform({"image": canary}) is canary
    assert len({picture.tobytes() for picture in canary}) == N_CANARY
    assert (canary[-2].max(), canary[-1].min()) == (0, 255)
    np.testing.assert_array_equal(fitted.canary()["image"], canary)


def test_a_preprocessor_survives_its_state_and_knows_its_layout() -> None:
    fitted = PicturePreprocessor.fit(column(2, 8, 9, 3))
    state = fitted.state()
    copy = PicturePreprocessor.from_state(State(json.loads(json.dumps(state.values)), state.arrays))
    assert copy == fitted
    assert copy.has_layout_of(fitted)
    assert not copy.has_layout_of(replace(fitted, width=10))
    assert not copy.has_layout_of(replace(fitted, name="photo"))
    assert fitted.describe() == {"fields": ["image"], "picture": [8, 9, 3]}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"picture": {"name": "image"}},
        {"picture": {"name": "image", "height": "8", "width": 9, "n_channels": 3}},
        {"picture": {"name": "image", "height": 8, "width": 9, "n_channels": 2}},
        {"picture": None},
    ],
)
def test_a_state_of_something_else_is_no_preprocessor(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"preprocessing of pictures does not fit|allowed: 1"):
        PicturePreprocessor.from_state(State(values))


def test_rows_of_pictures_are_counted_and_only_four_axes_are_pictures() -> None:
    assert row_count(column(5, 8, 8, 1)) == 5
    assert is_picture(np.zeros((1, 2, 2, 1)))
    assert not is_picture(np.zeros(3))
    for columns in ({**column(5, 8, 8, 1), "x": np.zeros(4)}, column(5, 8, 8)):
        with pytest.raises(ValueError, match=r"must be \(n,\) with one n, or pictures"):
            row_count(columns)


def test_fields_and_pictures_are_not_mistaken_for_each_other(make_pictures: Any, make_columns: Any) -> None:
    pictures = {"image": make_pictures(20)[0]}
    fields, _ = make_columns(20)
    with pytest.raises(
        ValueError, match="'pixels' takes pictures, the columns are fields; allowed with them: identity"
    ):
        train(fields, QUICK["pixels"], seed=0)
    with pytest.raises(
        ValueError, match="'identity' takes fields, the columns are pictures; allowed with them: pixels"
    ):
        train(pictures, FIELDS, seed=0)
    mixed = {**pictures, "x0": fields["x0"]}
    with pytest.raises(ValueError, match=r"columns are \['image', 'x0'\]; allowed with pictures: their column alone"):
        train(mixed, QUICK["pixels"], seed=0)
    with pytest.raises(ValueError, match="'identity' takes fields, the columns are pictures"):
        train(mixed, FIELDS, seed=0)


def test_too_few_pictures_are_refused(make_pictures: Any) -> None:
    with pytest.raises(ValueError, match="n_samples = 7 rows; needed: at least 8"):
        train({"image": make_pictures(7)[0]}, QUICK["pixels"], seed=0)


def test_a_model_is_of_fields_or_of_pictures_throughout(trained: Trained, make_columns: Any) -> None:
    of_fields = train(make_columns(50)[0], FIELDS, seed=0).model
    with pytest.raises(ValueError, match=f"representation '{trained.model.representation_name}' takes picture"):
        replace(of_fields, representation=trained.model.representation)
    with pytest.raises(ValueError, match="representation 'identity' takes fields"):
        replace(trained.model, representation=of_fields.representation)
    assert trained.model.takes_pictures
    assert not of_fields.takes_pictures
    with pytest.raises(ValueError, match=r"no heat maps: it scores the fields x0, .*; use explain"):
        of_fields.heat_maps(make_columns(5)[0])


def test_scores_of_pictures_are_one_a_row_and_within_their_ranges(trained: Trained, fresh: dict[str, Any]) -> None:
    scores = trained.model.score(fresh)
    for values in scores:
        assert values.shape == (70,)
        assert np.isfinite(values).all()
    np.testing.assert_array_equal(scores.flagged, scores.severity >= 1)
    nothing = {"image": fresh["image"][:0]}
    assert [len(values) for values in trained.model.score(nothing)] == [0, 0, 0, 0]
    assert trained.model.explain(nothing) == []
    assert trained.model.heat_maps(nothing).shape == (0, 16, 16)
    assert trained.model.contributions(nothing).values.shape == (0, 1)


def test_batching_and_order_never_change_a_score_or_a_heat_map_by_a_bit(
    trained: Trained, fresh: dict[str, Any]
) -> None:
    X, model = fresh["image"], trained.model
    score, maps = model.score(fresh).score, model.heat_maps(fresh)
    for size, n in ((1, 15), (13, 70), (64, 70)):
        parts = [{"image": X[start : min(n, start + size)]} for start in range(0, n, size)]
        np.testing.assert_array_equal(np.concatenate([model.score(part).score for part in parts]), score[:n])
        np.testing.assert_array_equal(np.concatenate([model.heat_maps(part) for part in parts]), maps[:n])
    np.testing.assert_array_equal(model.score({"image": X[::-1]}).score, score[::-1])


def test_a_model_of_pictures_read_from_disk_scores_and_explains_bit_for_bit(
    trained: Trained, fresh: dict[str, Any], tmp_path: Path
) -> None:
    save(trained.model, tmp_path / "model")
    copy = load(tmp_path / "model")
    for mine, theirs in zip(trained.model.score(fresh), copy.score(fresh), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(copy.heat_maps(fresh), trained.model.heat_maps(fresh))
    assert copy.explain(fresh) == trained.model.explain(fresh)
    assert copy.describe() == trained.model.describe()
    assert model_to_parts(copy) == model_to_parts(trained.model)
    description, _ = model_to_parts(trained.model)
    assert json.loads(json.dumps(description, allow_nan=False)) == description
    assert description["picture"] == [16, 16, 1]


def test_a_damaged_model_of_pictures_is_refused(trained: Trained) -> None:
    description, weights = model_to_parts(trained.model)
    arrays = safetensors.numpy.load(weights)
    parts = description["parts"]
    damaged: list[tuple[dict[str, Any], bytes]] = [
        ({**description, "parts": {**parts, "preprocessor": {"picture": {"name": "image"}}}}, weights),
        ({**description, "parts": {**parts, "explainer": {**parts["explainer"], "usual": {}}}}, weights),
        ({**description, "parts": {**parts, "explainer": {}}}, weights),
        ({**description, "parts": {**parts, "representation": {"options": {"taste": 1}, "shape": [8, 8, 1]}}}, weights),
        ({**description, "representation": "identity"}, weights),
        (description, weights[: len(weights) // 2]),
    ]
    other = {"picture": {"name": "image", "height": 16, "width": 16, "n_channels": 3}}
    damaged.append(({**description, "parts": {**parts, "preprocessor": other}}, weights))
    names = sorted(arrays)
    for name in [names[0], names[-1], *[name for name in names if name.startswith("representation.")][::9]]:
        array = arrays[name]
        for changed in (None, array[..., None], np.full_like(array, np.nan)):
            others = {key: each for key, each in arrays.items() if key != name}
            if changed is not None:
                others[name] = np.ascontiguousarray(changed)
            damaged.append((description, safetensors.numpy.save(others)))
    for bad_description, bad_weights in damaged:
        with pytest.raises(ValueError, match=r"."):
            model_from_parts(bad_description, bad_weights)


def test_a_forest_of_other_pictures_is_refused(make_pictures: Any) -> None:
    config = replace(QUICK["pixels"], classifier="isolation_forest", classifier_options={"n_estimators": 20})
    model = train({"image": make_pictures(60, n_channels=3)[0]}, config, seed=0).model
    description, weights = model_to_parts(model)
    grey = {"picture": {"name": "image", "height": 16, "width": 16, "n_channels": 1}}
    with pytest.raises(ValueError, match="model cannot be read: IndexError"):
        model_from_parts({**description, "parts": {**description["parts"], "preprocessor": grey}}, weights)


def test_the_explanation_of_a_picture_is_the_picture_itself(trained: Trained, fresh: dict[str, Any]) -> None:
    model, score = trained.model, trained.model.score(fresh).score
    assert isinstance(model.explainer, PictureExplainer)
    usual = model.explainer.usual_score
    assert np.quantile(score, 0.05) < usual < np.quantile(score, 0.95)
    explained = model.explain(fresh, n_top=3)
    assert explained[0] == (FieldContribution("image", pytest.approx(score[0] - usual), None, None),)
    contributions = model.contributions(fresh)
    np.testing.assert_allclose(contributions.values[:, 0] + contributions.base, score)
    assert contributions.expected == {"image": [None] * 70}


def test_the_canary_of_pictures_can_be_scored(trained: Trained) -> None:
    assert np.isfinite(trained.model.score(trained.model.canary()).score).all()


def test_another_false_alarm_rate_and_another_number_of_threads_change_no_score(
    trained: Trained, fresh: dict[str, Any]
) -> None:
    score = trained.model.score(fresh).score
    np.testing.assert_array_equal(trained.model.with_false_alarm_rate(0.1).score(fresh).score, score)
    np.testing.assert_allclose(trained.model.on("cpu", n_threads=2).score(fresh).score, score, rtol=1e-5)
    with pytest.raises(ValueError, match="device is 'abacus'; allowed: auto, cpu"):
        trained.model.on("abacus")


def test_the_report_of_pictures_says_what_happened(trained: Trained, config: TrainingConfig) -> None:
    report = trained.report
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == report.to_dict()
    assert report.n_steps == (0 if config.representation == "pixels" else 6)
    assert report.n_rows == (120 if config.representation == "pixels" else 96)
    assert len(trained.kept) == 120


def test_the_first_model_of_pictures_is_a_gaussian_on_pixels_and_finds_what_is_odd(make_pictures: Any) -> None:
    first = QUICK["cutpaste"].closed_form()
    assert (first.representation, first.classifier) == ("pixels", "gde")
    assert QUICK["pixels"].closed_form() is QUICK["pixels"]
    assert replace(QUICK["cutpaste"], contamination=0.2, n_subsets=3).closed_form().contamination == 0.2
    pictures, _ = make_pictures(300, contamination=0.1)
    new, is_anomaly = make_pictures(300, seed=1, contamination=0.3)
    model = train({"image": pictures}, first, seed=0).model
    assert roc_auc(is_anomaly, model.score({"image": new}).score) > 0.9


def test_refinement_on_pixels_finds_purer_pictures_and_detects_better(make_pictures: Any) -> None:
    gains = []
    for seed in range(3):
        pictures, _ = make_pictures(300, seed=seed, contamination=0.1)
        new, is_anomaly = make_pictures(600, seed=100 + seed, contamination=0.3)
        config = replace(QUICK["pixels"], representation_options={"n_cells": 4})
        aucs = [
            roc_auc(is_anomaly, train({"image": pictures}, each, seed=seed).model.score({"image": new}).score)
            for each in (replace(config, contamination=0.1), replace(config, refine="none"))
        ]
        gains.append(aucs[0] - aucs[1])
    assert np.mean(gains) > 0.003


def test_scoring_by_pixels_needs_no_torch(tmp_path: Path, make_pictures: Any) -> None:
    save(train({"image": make_pictures(30)[0]}, QUICK["pixels"], seed=0).model, tmp_path)
    code = (
        "import sys; from models.persistence import load; model = load(sys.argv[1]); model.score(model.canary()); "
        "model.explain(model.canary()); model.heat_maps(model.canary()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


@pytest.mark.parametrize("name", ["usual_score", "usual_heat"])
@pytest.mark.parametrize("value", [None, "3", np.nan, np.inf, 3])
def test_an_explainer_of_pictures_knows_what_is_usual(name: str, value: Any, trained: Trained) -> None:
    state = trained.model.explainer.state()
    damaged = {**state.values, "usual": {**state.values["usual"], name: value}}
    with pytest.raises(ValueError, match=r"explainer: usual_score and usual_heat are .*; needed: numbers"):
        PictureExplainer.from_state(State(damaged, state.arrays))


def test_an_explainer_whose_parts_do_not_fit_each_other_is_refused(trained: Trained) -> None:
    state = trained.model.explainer.state()
    arrays = {**state.arrays, "usual.places": state.arrays["usual.places"][:, :, 1:]}
    with pytest.raises(ValueError, match=r"explainer: places have shape .*, deviations \d+ dimensions"):
        PictureExplainer.from_state(State(state.values, arrays))


class Shown:
    """A representation that sees at each place its pixel."""

    name, takes = "shown", "picture"

    def __init__(self) -> None:
        self.n_shown: list[int] = []

    def places(self, X: np.ndarray) -> np.ndarray:
        self.n_shown.append(len(X))
        return (X / 255.0).astype(np.float32)


def test_heat_is_the_surprise_of_a_place_by_the_gaussian_of_all_deviations() -> None:
    rng, shown = np.random.default_rng(0), cast(Any, Shown())
    usual = rng.integers(40, 200, size=(4, 3, 3))
    X = np.clip(usual + rng.normal(0.0, 8.0, size=(60, 4, 3, 3)), 0, 255).astype(np.uint8)
    new = rng.integers(0, 256, size=(5, 4, 3, 3), dtype=np.uint8)
    explainer = PictureExplainer.fit(X, 2.5, shown, np.random.default_rng(1))
    means = (X / 255.0).mean(axis=0)
    deviations = (X / 255.0 - means).reshape(-1, 3)
    covariance = np.cov(deviations.T, bias=True)
    covariance = 0.9 * covariance + 0.1 * np.trace(covariance) / 3 * np.eye(3)
    gaussian = multivariate_normal(deviations.mean(axis=0), covariance)
    middle = np.median(-gaussian.logpdf(deviations))
    found = explainer.heat_maps(new, shown)
    assert (found.shape, found.dtype) == ((5, 4, 3), np.float32)
    for picture, row, column in np.ndindex(found.shape):
        surprise = -gaussian.logpdf(new[picture, row, column] / 255.0 - means[row, column])
        assert found[picture, row, column] == pytest.approx(surprise - middle, rel=1e-3, abs=1e-3)
    assert np.median(explainer.heat_maps(X, shown)) == pytest.approx(0.0, abs=1e-4)
    assert explainer.usual_score == 2.5
    assert explainer.heat_maps(new[:0], shown).shape == (0, 4, 3)


def test_what_is_usual_is_learned_from_some_hundred_pictures_at_most_which_the_seed_draws() -> None:
    X = np.random.default_rng(0).integers(0, 256, size=(700, 8, 8, 1), dtype=np.uint8)
    shown = cast(Any, Shown())
    one, two, other = (PictureExplainer.fit(X, 0.0, shown, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert shown.n_shown == [500] * 3
    np.testing.assert_array_equal(one.usual_places, two.usual_places)
    np.testing.assert_array_equal(one.heat_maps(X[:3], shown), two.heat_maps(X[:3], shown))
    assert (one.usual_places != other.usual_places).any()


@pytest.mark.parametrize("n", [1, 2, 30])
def test_equal_pictures_are_usual_and_any_change_of_them_is_hot_where_it_is(n: int) -> None:
    X, shown = np.full((n, 4, 4, 1), 100, dtype=np.uint8), cast(Any, Shown())
    explainer = PictureExplainer.fit(X, 0.0, shown, np.random.default_rng(1))
    changed = X[:1].copy()
    changed[0, 1, 2] = 130
    heat = explainer.heat_maps(np.concatenate([X[:1], changed]), shown)
    assert np.isfinite(heat).all()
    np.testing.assert_array_equal(heat[0], 0.0)
    assert np.unravel_index(heat[1].argmax(), (4, 4)) == (1, 2)
    assert heat[1].max() > 0.0


def test_heat_does_not_depend_on_the_classifier(make_pictures: Any) -> None:
    pictures = {"image": make_pictures(40, n_channels=3, side=20)[0]}
    gde, knn = (
        train(pictures, replace(QUICK["pixels"], classifier=name, refine="none"), seed=0).model.heat_maps(pictures)
        for name in ("gde", "knn")
    )
    assert gde.shape == (40, 20, 20)
    np.testing.assert_array_equal(gde, knn)


@pytest.mark.parametrize("small", [(1, 1), (2, 2), (3, 5), (16, 12), (40, 1), (64, 64)])
@pytest.mark.parametrize("large", [(16, 12), (7, 33), (1, 1)])
def test_maps_are_enlarged_as_pytorch_interpolates(small: tuple[int, int], large: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).normal(size=(3, *small)).astype(np.float32)
    found = enlarged(maps, *large)
    expected = torch.nn.functional.interpolate(torch.from_numpy(maps)[:, None], large, mode="bilinear")[:, 0].numpy()
    assert (found.shape, found.dtype) == ((3, *large), np.float32)
    np.testing.assert_allclose(found, expected, atol=3e-5)  # its places are float32
    assert enlarged(maps[:0], *large).shape == (0, *large)
