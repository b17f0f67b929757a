"""Units are measured once, whatever happens in between."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.methods import METHODS, Context, Method, fit, options_of
from benchmarks.runner import Journal, Unit, machine, measured, names_of, quality, ratios, run_units, whole


def unit(method: str, seed: int = 0, **options: Any) -> Unit:
    return Unit("test", "glass", 0.1, seed, method, options)


class Counted:
    """Measures nothing, and remembers what it was asked."""

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        self.calls: list[str] = []
        self.broken = broken

    def __call__(self, unit: Unit) -> Mapping[str, Any]:
        self.calls.append(unit.method)
        if unit.method in self.broken:
            raise ValueError("no luck")
        return {"auc": 0.5 + len(self.calls) / 100}


def quiet(text: str) -> None:
    pass


def test_a_unit_that_is_in_the_journal_is_not_run_again(tmp_path: Path) -> None:
    units = [unit("a"), unit("b"), unit("a", seed=1)]
    first, second = Counted(), Counted()
    before = run_units(units, Journal(tmp_path / "j.jsonl"), first, say=quiet)
    after = run_units([*units, unit("c")], Journal(tmp_path / "j.jsonl"), second, say=quiet)
    assert first.calls == ["a", "b", "a"]
    assert second.calls == ["c"]
    assert after[:3] == before


def test_other_options_are_another_unit_and_their_order_is_not() -> None:
    assert unit("a", k=1).key != unit("a", k=2).key
    assert unit("a", k=1, m=2).key == unit("a", m=2, k=1).key


def test_the_journal_is_written_unit_by_unit(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"

    def dies_at_b(unit: Unit) -> Mapping[str, Any]:
        if unit.method == "b":
            raise KeyboardInterrupt
        return {"auc": 1.0}

    with pytest.raises(KeyboardInterrupt):
        run_units([unit("a"), unit("b")], Journal(path), dies_at_b, say=quiet)
    again = Counted()
    run_units([unit("a"), unit("b")], Journal(path), again, say=quiet)
    assert again.calls == ["b"]


def test_a_torn_last_line_costs_that_unit_only(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    run_units([unit("a"), unit("b")], Journal(path), Counted(), say=quiet)
    path.write_bytes(path.read_bytes()[:-20])
    again = Counted()
    run_units([unit("a"), unit("b")], Journal(path), again, say=quiet)
    assert again.calls == ["b"]
    assert [json.loads(line)["method"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_a_spoilt_line_in_the_middle_is_told_and_not_skipped(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('nonsense\n{"key": "x"}\n')
    with pytest.raises(ValueError, match=r"line 1 is no record .* --fresh"):
        Journal(path)


def test_fresh_forgets_and_again_runs_the_named_methods(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    units = [unit("a"), unit("b")]
    run_units(units, Journal(path), Counted(), say=quiet)
    again = Counted()
    run_units(units, Journal(path), again, again=["b"], say=quiet)
    assert again.calls == ["b"]
    fresh = Counted()
    run_units(units, Journal(path, is_fresh=True), fresh, say=quiet)
    assert fresh.calls == ["a", "b"]
    assert len(path.read_text().splitlines()) == 2


def test_a_unit_that_fails_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    found = run_units([unit("a"), unit("b")], Journal(path), Counted(broken=("a",)), say=quiet)
    assert found[0]["error"] == "ValueError: no luck"
    assert "auc" in found[1]
    mended = Counted()
    assert "error" not in run_units([unit("a"), unit("b")], Journal(path), mended, say=quiet)[0]
    assert mended.calls == ["a"]


def test_records_say_where_they_come_from(tmp_path: Path) -> None:
    facts = {"commit": "abc", "machine": machine(1)}
    (record,) = run_units(
        [unit("a")], Journal(tmp_path / "j.jsonl"), Counted(), provenance=lambda unit: facts, say=quiet
    )
    assert record["commit"] == "abc"
    assert record["machine"]["n_threads"] == 1
    assert record["machine"]["versions"]["numpy"] == np.__version__
    assert record["wall_s"] >= 0.0


def test_scores_that_are_not_finite_are_an_error_and_no_figure() -> None:
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        quality(np.array([True, False, False]), np.array([np.nan, 1.0, 2.0]))


def test_a_method_is_measured_on_the_test_rows() -> None:
    distance = Method("distance", lambda X, seed, context: lambda rows: np.abs(rows - X.mean(axis=0)).sum(axis=1))
    train = np.zeros((10, 2), dtype=np.float32)
    test = np.array([[0.0, 0.0], [5.0, 5.0], [1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    found = measured("x", train, test, np.array([False, True, False, False]), 0, Context(), distance)
    assert (found["f1"], found["auc"], found["ap"]) == (1.0, 1.0, 1.0)
    assert found["fit_s"] >= 0.0
    assert found["score_s"] >= 0.0


def test_a_method_with_a_limit_is_fitted_on_a_draw_of_its_rows() -> None:
    seen: list[int] = []

    def remember(X: Any, seed: int, context: Context) -> Callable[[Any], Any]:
        seen.append(len(np.unique(X)))
        return lambda rows: np.zeros(len(rows))

    method = Method("limited", remember, max_fit_rows=7)
    fit(method, np.arange(20.0)[:, None], 0, Context())
    fit(method, np.arange(5.0)[:, None], 0, Context())
    assert seen == [7, 5]
    assert options_of(method, Context()) == {"max_fit_rows": 7}


@pytest.mark.parametrize("name", ["iforest", "gde", "half_space_trees"])
def test_peers_find_what_is_far_away(name: str) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3)).astype(np.float32)
    far = X[:10] + np.float32(8.0)
    train = np.concatenate([X, far[:3]])
    scores = fit(METHODS[name], train, 0, Context())(np.concatenate([X[:50], far]))
    assert scores[50:].mean() > scores[:50].mean()
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (names_of("set", ["wine", "glass"]), "wine,beer", "set 'beer' is unknown; allowed: wine, glass"),
        (names_of("method", ["a"]), "", "method '' is unknown; allowed: a"),
        (ratios, "0,ten", "allowed: fractions separated by commas"),
        (ratios, "5", "not percent"),
        (whole, "0", "allowed: whole numbers from 1 on"),
    ],
)
def test_arguments_that_are_not_allowed_say_what_is(read: Callable[[str], Any], text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        read(text)


def test_names_are_read_once_each_in_the_order_given() -> None:
    assert names_of("set", ["a", "b"])("b, a,b") == ["b", "a"]
    assert ratios("0,0.025") == [0.0, 0.025]
