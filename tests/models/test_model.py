"""What every trained model promises, whatever its representation."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.blocks import CHUNK_ROWS
from models.persistence import DESCRIPTION_FILE, load, model_from_parts, model_to_parts, save
from models.training import Trained


@pytest.fixture(scope="session")
def fresh(make_columns: Any) -> dict[str, np.ndarray]:
    columns, _ = make_columns(700, seed=5, contamination=0.1, has_missing=True)
    return dict(columns)


def test_scores_are_one_a_row_and_within_their_ranges(trained: Trained, fresh: dict[str, np.ndarray]) -> None:
    scores = trained.model.score(fresh)
    for values in scores:
        assert values.shape == (700,)
        assert np.isfinite(values).all()
    assert ((scores.p_value > 0) & (scores.p_value <= 1)).all()
    assert (scores.severity >= 0).all()
    np.testing.assert_array_equal(scores.flagged, scores.severity >= 1)
    np.testing.assert_array_equal(scores.flagged, scores.p_value <= trained.model.false_alarm_rate)
    order = np.argsort(scores.score)
    assert (np.diff(scores.severity[order]) >= 0).all()


def test_no_rows_are_scored_and_explained_as_no_rows(trained: Trained, fresh: dict[str, np.ndarray], take: Any) -> None:
    nothing = take(fresh, slice(0, 0))
    assert [len(values) for values in trained.model.score(nothing)] == [0, 0, 0, 0]
    assert trained.model.explain(nothing, 3) == []


@given(cuts=st.lists(st.integers(0, 700), max_size=6), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_batching_and_order_never_change_a_score_by_a_bit(
    trained: Trained, fresh: dict[str, np.ndarray], take: Any, cuts: list[int], seed: int
) -> None:
    together = trained.model.score(fresh)
    edges = [0, *sorted(cuts), 700]
    parts = [trained.model.score(take(fresh, slice(a, b))) for a, b in itertools.pairwise(edges)]
    order = np.random.default_rng(seed).permutation(700)
    shuffled = trained.model.score(take(fresh, order))
    for index, values in enumerate(together):
        np.testing.assert_array_equal(np.concatenate([part[index] for part in parts]), values)
        np.testing.assert_array_equal(shuffled[index], values[order])


def test_rows_beyond_a_chunk_score_as_they_do_alone(trained: Trained, fresh: dict[str, np.ndarray], take: Any) -> None:
    many = {name: np.concatenate([column] * 3) for name, column in fresh.items()}
    rows = np.array([0, CHUNK_ROWS - 1, CHUNK_ROWS, 2 * CHUNK_ROWS, 2099])
    together = trained.model.score(many).score
    assert len(together) == 2100 > 2 * CHUNK_ROWS
    alone = [trained.model.score(take(many, [row])).score[0] for row in rows]
    np.testing.assert_array_equal(together[rows], alone)


def test_a_model_read_from_disk_scores_and_explains_bit_for_bit(
    trained: Trained, fresh: dict[str, np.ndarray], tmp_path: Path
) -> None:
    save(trained.model, tmp_path / "model")
    copy = load(tmp_path / "model")
    for mine, theirs in zip(trained.model.score(fresh), copy.score(fresh), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert copy.describe() == trained.model.describe()
    assert copy.explain(fresh, 2) == trained.model.explain(fresh, 2)
    assert model_to_parts(copy) == model_to_parts(trained.model)


def test_the_description_is_json_and_names_the_representation(trained: Trained) -> None:
    description, _ = model_to_parts(trained.model)
    assert json.loads(json.dumps(description, allow_nan=False)) == description
    assert description["representation"] == trained.model.representation_name


def test_what_is_no_model_is_refused(trained: Trained, tmp_path: Path) -> None:
    description, weights = model_to_parts(trained.model)
    arrays = safetensors.numpy.load(weights)
    fewer = {name: array for name, array in arrays.items() if name != "calibration.body"}
    weight = next(name for name in sorted(arrays) if name.startswith("classifier."))
    spoiled = arrays | {weight: arrays[weight] * np.nan}
    narrower = arrays | {"explainer.mean": arrays["explainer.mean"][1:]}
    for bad_description, bad_weights in [
        ({**description, "format": 99}, weights),
        ({**description, "representation": "astrology"}, weights),
        ({key: value for key, value in description.items() if key != "parts"}, weights),
        ({**description, "parts": {**description["parts"], "preprocessor": {"fields": [{"kind": "odd"}]}}}, weights),
        (description, weights[: len(weights) // 2]),
        (description, b""),
        (description, safetensors.numpy.save(fewer)),
        (description, safetensors.numpy.save(spoiled)),
        (description, safetensors.numpy.save(narrower)),
    ]:
        with pytest.raises(ValueError, match=r"."):
            model_from_parts(bad_description, bad_weights)
    save(trained.model, tmp_path)
    (tmp_path / DESCRIPTION_FILE).write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load(tmp_path)


def test_the_canary_covers_missing_and_never_seen_values_and_can_be_scored(trained: Trained) -> None:
    canary = trained.model.canary()
    assert set(canary) == set(trained.model.fields)
    assert np.isnan(canary["x0"]).any()
    assert None in canary["method"].tolist()
    assert set(canary["method"].tolist()) - {"GET", "POST", "PUT", None}
    assert np.isfinite(trained.model.score(canary).score).all()
    np.testing.assert_array_equal(trained.model.canary()["x0"], canary["x0"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x1", None, r"fields \['x1'\] are missing"),
        ("x1", np.array(["a"] * 700, dtype=object), "'x1' has dtype object"),
    ],
)
def test_columns_that_do_not_fit_are_named(
    trained: Trained, fresh: dict[str, np.ndarray], name: str, value: Any, message: str
) -> None:
    columns = {key: column for key, column in fresh.items() if key != name}
    if value is not None:
        columns[name] = value
    with pytest.raises(ValueError, match=message):
        trained.model.score(columns)


@pytest.mark.parametrize(
    "changed",
    [
        {"constant": 8.0},
        {"constant": 7e9},
        {"x0": np.nan},
        {"x0": 1e300},
        {"method": "BREW"},
        {"x0": 4.0, "x1": -8.0},
    ],
)
def test_what_never_happened_in_training_raises_the_score_but_not_to_infinity(
    trained: Trained, fresh: dict[str, np.ndarray], take: Any, changed: dict[str, Any]
) -> None:
    scores = trained.model.score(fresh)
    usual = np.flatnonzero(scores.p_value > 0.3)[:40]
    rows = take(fresh, usual)
    before = trained.model.score(rows).score
    for name, value in changed.items():
        rows[name] = np.full(len(usual), value, dtype=rows[name].dtype)
    after = trained.model.score(rows).score
    assert np.isfinite(after).all()
    assert (after > before).mean() > 0.9


def test_another_false_alarm_rate_moves_the_boundary_only(trained: Trained, fresh: dict[str, np.ndarray]) -> None:
    wider = trained.model.with_false_alarm_rate(0.05)
    before, after = trained.model.score(fresh), wider.score(fresh)
    np.testing.assert_array_equal(before.p_value, after.p_value)
    assert after.flagged.sum() > before.flagged.sum()
    assert (wider.false_alarm_rate, trained.model.false_alarm_rate) == (0.05, 0.005)
    with pytest.raises(ValueError, match=r"false_alarm_rate is 0\.0"):
        trained.model.with_false_alarm_rate(0.0)


def test_scoring_and_explaining_fields_need_no_torch(trained: Trained, tmp_path: Path) -> None:
    save(trained.model, tmp_path)
    code = (
        "import sys; from models.persistence import load; model = load(sys.argv[1]); model.score(model.canary()); "
        "model.explain(model.canary()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


def test_a_model_cannot_be_changed(trained: Trained) -> None:
    with pytest.raises(FrozenInstanceError):
        trained.model.false_alarm_rate = 0.1  # type: ignore[misc]


def test_the_field_that_was_tampered_with_comes_first(
    trained: Trained, fresh: dict[str, np.ndarray], take: Any
) -> None:
    usual = np.flatnonzero(trained.model.score(fresh).p_value > 0.3)[:50]
    for name, value, expected in [("x3", 12.0, 0.0), ("method", "BREW", None)]:
        rows = take(fresh, usual)
        rows[name] = np.full(50, value, dtype=rows[name].dtype)
        explained = trained.model.explain(rows, 3)
        assert all(len(parts) == 3 for parts in explained)
        assert np.mean([parts[0].field == name for parts in explained]) > 0.9
        first = next(parts[0] for parts in explained if parts[0].field == name)
        assert first.observed == value
        if expected is None:
            assert first.expected in ("GET", "POST", "PUT", None)
        else:
            assert first.expected == pytest.approx(expected, abs=1.0)


def test_the_expected_value_follows_from_the_other_fields(
    trained: Trained, fresh: dict[str, np.ndarray], take: Any
) -> None:
    rows = take(fresh, np.arange(20))
    rows["x0"], rows["x1"] = np.full(20, 2.0), np.full(20, -9.0)  # x1 is 2 x0 but for noise
    for parts in trained.model.explain(rows, len(trained.model.fields)):
        by_field = {part.field: part for part in parts}
        assert by_field["x1"].expected == pytest.approx(4.0, abs=1.5)


def test_a_missing_value_is_observed_as_none(trained: Trained, fresh: dict[str, np.ndarray], take: Any) -> None:
    rows = take(fresh, np.arange(3))
    rows["x2"], rows["method"] = np.full(3, np.nan), np.full(3, None, dtype=object)
    for parts in trained.model.explain(rows, len(trained.model.fields)):
        observed = {part.field: part.observed for part in parts}
        assert observed["x2"] is None
        assert observed["method"] is None
