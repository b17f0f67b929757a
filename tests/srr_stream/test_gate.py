"""The gate: each check fails for its own reason, and only what is worse than the champion is kept out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from models.detector import Scores
from models.training import TrainingConfig, train
from srr_stream.gate import CHECKS, Check, GateBounds, GateReport, judge, swap_fields
from srr_stream.gate import _auc as auc
from srr_stream.gate import _rank_correlation as rank_correlation

Columns = Mapping[str, NDArray[Any]]
Rule = Callable[[Columns], NDArray[np.float64]]

N = 2000
BOUNDS = GateBounds(
    max_excluded_ratio=0.4,
    max_flagged_ratio=0.3,
    max_flagged_factor=10.0,
    min_synthetic_auc_margin=-0.05,
    max_forgotten_ratio=0.02,
)


def off_the_line(columns: Columns) -> NDArray[np.float64]:
    """Score how far a record is from b = a: what a good model learns of `newest`."""
    return np.abs(columns["a"] - columns["b"])


def upside_down(columns: Columns) -> NDArray[np.float64]:
    return -off_the_line(columns)


@dataclass(frozen=True)
class Detector:
    """A detector made by hand: a formula for the score, and the score from which on it flags."""

    rule: Rule = off_the_line
    flags_from: float = math.inf
    false_alarm_rate: float = 0.005
    takes_pictures: bool = False
    representation_name: str = "identity"

    def score(self, columns: Columns) -> Scores:
        score = np.asarray(self.rule(columns), dtype=np.float64)
        return Scores(score, np.ones_like(score), np.zeros_like(score), score >= self.flags_from)


def flags_share(share: float, newest: Columns, rule: Rule = off_the_line) -> Detector:
    """Return a detector that flags exactly this share of `newest`."""
    score = np.sort(rule(newest))
    return Detector(rule, flags_from=float(score[len(score) - round(share * len(score))]) if share else math.inf)


@pytest.fixture
def newest() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    a = rng.normal(size=N)
    return {"a": a, "b": a + rng.normal(0, 0.1, N)}


def ask(challenger: Any, champion: Any, newest: Columns, **changes: Any) -> GateReport:
    given = {"excluded_ratio": 0.05, "seed": 0} | {
        key: changes.pop(key) for key in ("excluded_ratio", "seed") if key in changes
    }
    return judge(challenger, champion, newest, replace(BOUNDS, **changes), **given)


def failed(report: GateReport) -> list[str]:
    return [check.name for check in report.checks if not check.passed]


def value(report: GateReport, name: str) -> float:
    return next(check.value for check in report.checks if check.name == name)


# Decisions


def test_a_challenger_as_good_as_the_champion_passes_every_check(newest: Columns) -> None:
    report = ask(flags_share(0.01, newest), flags_share(0.01, newest), newest)
    assert report.passed
    assert report.reason == "all checks passed"
    assert value(report, "flagged_factor") == pytest.approx(1.0)
    assert value(report, "synthetic_auc_margin") == 0.0
    assert value(report, "rank_agreement") == pytest.approx(1.0)


def test_without_a_champion_only_the_absolute_bounds_are_checked(newest: Columns) -> None:
    report = ask(flags_share(0.2, newest, upside_down), None, newest)
    assert report.passed
    assert [check.name for check in report.checks] == [
        "non_finite_scores",
        "excluded_ratio",
        "flagged_ratio",
        "synthetic_auc",
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_keeps_a_challenger_out(newest: Columns, bad: float) -> None:
    def broken(columns: Columns) -> NDArray[np.float64]:
        score = off_the_line(columns)
        score[3] = bad
        return score

    report = ask(Detector(broken), Detector(), newest)
    assert failed(report) == ["non_finite_scores"]
    assert report.reason == "non_finite_scores is 2, allowed: 0"


@pytest.mark.parametrize("has_champion", [True, False])
def test_a_refinement_that_dropped_too_much_keeps_a_challenger_out(newest: Columns, has_champion: bool) -> None:
    report = ask(Detector(), Detector() if has_champion else None, newest, excluded_ratio=0.41)
    assert failed(report) == ["excluded_ratio"]
    assert report.reason == "excluded_ratio is 0.41, allowed: ≤ 0.4"
    assert ask(Detector(), None, newest, excluded_ratio=0.4).passed


@pytest.mark.parametrize("has_champion", [True, False])
def test_a_challenger_that_flags_too_much_is_kept_out(newest: Columns, has_champion: bool) -> None:
    champion = flags_share(0.2, newest) if has_champion else None
    assert failed(ask(flags_share(0.31, newest), champion, newest)) == ["flagged_ratio"]
    assert ask(flags_share(0.3, newest), champion, newest).passed


def test_a_challenger_that_flags_many_times_what_the_champion_flags_is_kept_out(newest: Columns) -> None:
    report = ask(flags_share(0.11, newest), flags_share(0.01, newest), newest)
    assert failed(report) == ["flagged_factor"]
    assert report.reason == "flagged_factor is 11, allowed: ≤ 10"
    assert ask(flags_share(0.1, newest), flags_share(0.01, newest), newest).passed


def test_a_champion_that_flags_nothing_is_taken_to_flag_its_false_alarms(newest: Columns) -> None:
    assert ask(flags_share(0.05, newest), Detector(), newest).passed
    assert failed(ask(flags_share(0.06, newest), Detector(), newest)) == ["flagged_factor"]


def test_a_challenger_that_flags_far_less_is_let_in_for_after_a_drift_the_champion_flags_everything(
    newest: Columns,
) -> None:
    report = ask(flags_share(0.0, newest), flags_share(1.0, newest), newest)
    assert report.passed
    assert value(report, "flagged_factor") == 0.0


def test_a_challenger_that_detects_worse_is_kept_out(newest: Columns) -> None:
    report = ask(Detector(upside_down), Detector(), newest)
    assert failed(report) == ["synthetic_auc_margin"]
    assert value(report, "synthetic_auc") < 0.5
    assert report.reason.endswith("allowed: ≥ -0.05")


def test_a_challenger_that_detects_better_is_let_in_though_it_disagrees(newest: Columns) -> None:
    report = ask(Detector(), Detector(upside_down), newest)
    assert report.passed
    assert value(report, "synthetic_auc_margin") > 0.3
    assert value(report, "rank_agreement") == pytest.approx(-1.0)


def test_a_champion_whose_scores_are_not_finite_keeps_nobody_out(newest: Columns) -> None:
    report = ask(Detector(), Detector(lambda columns: np.full(len(columns["a"]), math.nan)), newest)
    assert report.passed
    assert value(report, "rank_agreement") == 0.0


def test_every_reason_is_told_when_several_checks_fail(newest: Columns) -> None:
    report = ask(flags_share(0.5, newest, upside_down), Detector(), newest, excluded_ratio=0.9)
    assert failed(report) == ["excluded_ratio", "flagged_ratio", "flagged_factor", "synthetic_auc_margin"]
    assert report.reason.count(";") == 3


def test_the_same_seed_gives_the_same_report(newest: Columns) -> None:
    first, second = (ask(Detector(), Detector(upside_down), newest, seed=3) for _ in range(2))
    assert first == second
    assert value(first, "synthetic_auc") != value(ask(Detector(), None, newest, seed=4), "synthetic_auc")


def test_judging_leaves_the_records_as_they_were(newest: Columns) -> None:
    before = {name: column.copy() for name, column in newest.items()}
    ask(Detector(), Detector(), newest)
    assert all(np.array_equal(newest[name], before[name]) for name in before)


@pytest.mark.parametrize("broken", [True, False])
def test_a_report_is_json_whatever_was_scored(newest: Columns, broken: bool) -> None:
    def nothing(columns: Columns) -> NDArray[np.float64]:
        return np.full(len(columns["a"]), math.nan)

    report = ask(Detector(nothing if broken else off_the_line), Detector(nothing), newest)
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["passed"] is not broken
    assert {check["name"] for check in told["checks"]} >= {"non_finite_scores", "synthetic_auc"}
    assert {check["name"] for check in told["checks"]} <= set(CHECKS)


def test_what_a_failed_check_looks_like_is_told_with_it() -> None:
    good, bad = Check("a", 0.5, "≤ 1", True, "never told"), Check("b", 2.0, "≤ 1", False, "it looks odd")
    assert GateReport((good, bad)).reason == "b is 2, allowed: ≤ 1 (it looks odd)"


def test_one_record_is_enough_to_judge_by(newest: Columns) -> None:
    one = {name: column[:1] for name, column in newest.items()}
    assert ask(Detector(), Detector(upside_down), one).passed


def test_a_trained_model_passes_and_one_trained_on_other_data_does_not(newest: Columns) -> None:
    config = TrainingConfig(representation="identity")
    rng = np.random.default_rng(1)
    champion = train(newest, config, seed=0).model
    strange = {"a": rng.normal(size=N), "b": rng.normal(size=N)}
    assert ask(train(newest, config, seed=1).model, champion, newest).passed
    assert "synthetic_auc_margin" in failed(ask(train(strange, config, seed=0).model, champion, newest))


def test_over_a_stand_in_for_models_of_pictures_any_factor_is_allowed_within_the_absolute_bound(
    newest: Columns,
) -> None:
    champion = replace(flags_share(0.0, newest), takes_pictures=True, representation_name="pixels")
    trained = replace(flags_share(0.2, newest), takes_pictures=True, representation_name="cutpaste")
    assert ask(trained, champion, newest).passed
    assert failed(ask(trained, replace(champion, representation_name="cutpaste"), newest)) == ["flagged_factor"]
    assert failed(ask(trained, replace(champion, takes_pictures=False), newest)) == ["flagged_factor"]
    assert "flagged_ratio" in failed(ask(trained, champion, newest, max_flagged_ratio=0.1))


# Made-up anomalies


@given(n=st.integers(1, 50), n_fields=st.integers(2, 6), seed=st.integers(0, 99))
def test_swapping_fields_keeps_every_fields_own_values(n: int, n_fields: int, seed: int) -> None:
    # Values tell their row and field apart, so that nothing can come from elsewhere unseen.
    columns = {f"f{j}": np.arange(n, dtype=np.float64) + 1000 * j for j in range(n_fields)}
    swapped = swap_fields(columns, np.random.default_rng(seed))
    assert list(swapped) == list(columns)
    for name, column in columns.items():
        assert swapped[name].shape == (n,)
        assert set(swapped[name]) <= set(column)


def test_swapping_fields_keeps_their_distributions_and_breaks_what_they_have_to_do_with_each_other(
    newest: Columns,
) -> None:
    swapped = swap_fields(newest, np.random.default_rng(0))
    for name, column in newest.items():
        assert np.quantile(swapped[name], [0.1, 0.5, 0.9]) == pytest.approx(
            np.quantile(column, [0.1, 0.5, 0.9]), abs=0.1
        )
    assert np.corrcoef(newest["a"], newest["b"])[0, 1] > 0.99
    # A quarter of the records has neither field swapped.
    assert np.corrcoef(swapped["a"], swapped["b"])[0, 1] == pytest.approx(0.25, abs=0.06)


def test_swapping_fields_keeps_kinds_and_missing_values() -> None:
    columns = {
        "route": np.array(["/", None, "/cart"] * 20, dtype=object),
        "load": np.array([np.nan, 1.0, 2.0] * 20),
    }
    swapped = swap_fields(columns, np.random.default_rng(0))
    assert swapped["route"].dtype == object
    assert set(swapped["route"]) == {"/", None, "/cart"}
    assert swapped["load"].dtype == np.float64
    assert np.isnan(swapped["load"]).any()


@given(
    n=st.integers(1, 6),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_a_swapped_patch_is_a_rectangle_out_of_another_picture(
    n: int, height: int, width: int, channels: int, seed: int
) -> None:
    # Every pixel of a picture has the picture's number.
    pictures = np.empty((n, height, width, channels), dtype=np.uint8)
    pictures[:] = np.arange(n)[:, None, None, None]
    before = pictures.copy()
    swapped = swap_fields({"photo": pictures}, np.random.default_rng(seed))["photo"]
    np.testing.assert_array_equal(pictures, before)
    assert (swapped.shape, swapped.dtype) == (pictures.shape, np.uint8)
    for row, picture in enumerate(swapped):
        is_other = (picture != row).all(axis=2)
        assert len(set(picture[is_other].ravel().tolist())) <= 1
        if is_other.any():
            rows, columns = np.flatnonzero(is_other.any(axis=1)), np.flatnonzero(is_other.any(axis=0))
            assert is_other[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert len(rows) <= max(1, height // 2)
            assert len(columns) <= max(1, width // 2)


def test_the_gate_judges_models_of_pictures() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 40, size=(400, 16, 16, 1), dtype=np.uint8)
    pictures[:, :8] += 200  # bright above, dark below: a patch from elsewhere shows
    model = train({"photo": pictures}, TrainingConfig(representation="pixels", classifier="gde"), seed=0).model
    bounds = replace(BOUNDS, min_synthetic_auc_margin=-0.1)
    report = judge(model, model, {"photo": pictures}, bounds, excluded_ratio=0.1, seed=0)
    assert report.passed
    assert next(check.value for check in report.checks if check.name == "synthetic_auc") > 0.7


@pytest.mark.parametrize("low", [0.0, 7.0])
def test_a_single_number_is_moved_beyond_its_range(low: float) -> None:
    column = np.linspace(low, low + 4.0, 9)
    (moved,) = swap_fields({"x": column}, np.random.default_rng(0)).values()
    assert set(np.abs(moved - column)) == {4.0}


def test_a_single_number_that_never_changes_is_moved_all_the_same() -> None:
    (moved,) = swap_fields({"x": np.full(9, 5.0)}, np.random.default_rng(0)).values()
    assert set(np.abs(moved - 5.0)) == {1.0}


def test_a_single_number_that_is_always_missing_stays_missing() -> None:
    (moved,) = swap_fields({"x": np.full(9, np.nan)}, np.random.default_rng(0)).values()
    assert np.isnan(moved).all()


def test_a_single_category_becomes_one_that_was_never_seen() -> None:
    (moved,) = swap_fields({"x": np.array(["a", None, "b"], dtype=object)}, np.random.default_rng(0)).values()
    assert set(moved) == {"never seen"}


# Measures


def scores_of(values: list[float]) -> Scores:
    array = np.array(values, dtype=np.float64)
    return Scores(array, array, array, array > 0)


numbers = st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]) | st.floats(-1e9, 1e9), min_size=1, max_size=40)


@given(normal=numbers, anomalous=numbers)
def test_the_area_under_the_curve_is_scikit_learns(normal: list[float], anomalous: list[float]) -> None:
    labels = [0] * len(normal) + [1] * len(anomalous)
    expected = roc_auc_score(labels, normal + anomalous)
    assert auc(scores_of(normal), scores_of(anomalous)) == pytest.approx(expected)


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40))
def test_rank_agreement_is_scipys_spearman_and_zero_where_nothing_can_be_ranked(values: list[float]) -> None:
    from scipy.stats import spearmanr

    a = np.array(values)
    b = np.roll(a, 1)
    if len(set(values)) == 1:
        assert rank_correlation(a, b) == 0.0
    else:
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
