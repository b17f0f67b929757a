"""A freshly swapped model that flags too much is rolled back, and nothing else is."""

from __future__ import annotations

import logging
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from srr_stream import assembly
from srr_stream.loading import check_settings
from srr_stream.metrics import ScorerMetrics
from srr_stream.settings import Settings
from srr_stream.shadow import Shadow, Tally, side_by_side
from srr_stream.swap_watch import MIN_RECORDS, SwapWatch, is_silent, why_roll_back

BOUNDS: dict[str, Any] = {"max_flagged_ratio": 0.3, "max_flagged_factor": 10.0}


class Flagger:
    """A model that flags every value from `limit` on."""

    false_alarm_rate = 0.005

    def __init__(self, limit: float, *, takes_pictures: bool = False, representation_name: str = "identity") -> None:
        self.limit = limit
        self.takes_pictures = takes_pictures
        self.representation_name = representation_name
        self.n_scored = 0

    def score(self, features: Any) -> Any:
        self.n_scored += len(features["x"])
        return SimpleNamespace(flagged=features["x"] >= self.limit)


class Broken(Flagger):
    def score(self, features: Any) -> Any:
        raise RuntimeError("no memory")


def live(version: int, model: Flagger) -> Any:
    return SimpleNamespace(version=version, model=model)


class Models:
    """Stands where the live model does: what was replaced, what waits, what was asked for."""

    def __init__(self) -> None:
        self.current: Any = None
        self.previous: Any = None
        self.challenger: Any = None
        self.rollbacks: list[tuple[int, int, str]] = []

    def roll_back(self, version: int, previous: int, reason: str) -> None:
        self.rollbacks.append((version, previous, reason))

    def forget_previous(self, version: int | None = None) -> None:
        if self.previous is not None and version in (None, self.previous.version):
            self.previous = None

    def drop_challenger(self, version: int) -> None:
        assert self.challenger.version == version
        self.challenger = None


class Bench:
    def __init__(self) -> None:
        self.models = Models()
        self.registry = CollectorRegistry()
        self.metrics = ScorerMetrics(self.registry)
        self.watch = SwapWatch(self.models, metrics=self.metrics, probation=10_000, **BOUNDS)  # type: ignore[arg-type]
        self.shadow = Shadow(self.models, metrics=self.metrics)  # type: ignore[arg-type]
        self.rng = np.random.default_rng(0)

    @property
    def current(self) -> Any:
        return self.models.current

    def swap(self, version: int, model: Flagger) -> None:
        self.models.previous, self.models.current = self.models.current, live(version, model)

    def score(self, n: int, *, shift: float = 0.0, batch: int = 250) -> None:
        """Score n records, uniform from 0 to 1 and so flagged as rarely as the limit is high."""
        for _ in range(n // batch):
            features = {"x": self.rng.random(batch) + shift}
            flagged = self.current.model.score(features).flagged
            self.watch.observe(self.current, features, flagged)
            self.shadow.observe(self.current, features, flagged)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.swap(1, Flagger(0.99))
    made.score(1000)
    return made


# Bounds


@pytest.mark.parametrize(
    ("tally", "reason"),
    [
        (Tally(1000, 400, 20), "gate.max_flagged_ratio"),
        (Tally(1000, 290, 100), None),
        (Tally(1000, 120, 5), "gate.max_flagged_factor"),
        (Tally(1000, 120, 20), None),
        (Tally(1000, 55, 0), None),
        (Tally(1000, 90, 0), "gate.max_flagged_factor"),
        (Tally(1000, 1000, 900), None),
        (Tally(MIN_RECORDS - 1, MIN_RECORDS - 1, 0), None),
        (Tally(), None),
    ],
)
def test_a_bound_must_surely_be_left_and_by_the_new_model_alone(tally: Tally, reason: str | None) -> None:
    found = why_roll_back(tally, false_alarm_rate=0.005, **BOUNDS)
    assert (found is None) == (reason is None)
    assert reason is None or reason in str(found)


def test_a_model_that_flags_far_less_is_called_silent_only_where_that_is_sure() -> None:
    assert is_silent(Tally(5000, 0, 250), max_flagged_factor=10.0)
    assert not is_silent(Tally(5000, 50, 250), max_flagged_factor=10.0)
    assert not is_silent(Tally(100, 0, 3), max_flagged_factor=10.0)


# Probation


def test_a_new_model_that_flags_too_much_is_rolled_back_with_the_reason(bench: Bench) -> None:
    bench.swap(2, Flagger(0.5))
    bench.score(1750)
    assert bench.models.rollbacks == [], "too few records to be sure"
    bench.score(1250)
    ((version, previous, reason),) = bench.models.rollbacks
    assert (version, previous) == (2, 1)
    assert reason.startswith("version 2 flags ")
    assert "of 200 live records, its predecessor " in reason
    assert reason.endswith("allowed: 30.00% (gate.max_flagged_ratio)")


def test_a_new_model_within_its_bounds_serves_its_probation_and_the_old_one_is_let_go(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.swap(2, Flagger(0.95))
    with caplog.at_level(logging.INFO, "srr_stream.swap_watch"):
        bench.score(9500)
        assert bench.models.previous is not None
        assert bench.value("srr_probation_flagged_ratio", model="live") == pytest.approx(0.05, abs=0.03)
        assert bench.value("srr_probation_flagged_ratio", model="previous") == pytest.approx(0.01, abs=0.01)
        bench.score(500)
    assert bench.models.previous is None
    assert bench.models.rollbacks == []
    assert bench.value("srr_probation_flagged_ratio", model="live") is None
    assert "has served its probation:" in caplog.text


def test_a_drift_within_the_probation_is_not_held_against_the_new_model(bench: Bench) -> None:
    bench.swap(2, Flagger(0.98))
    bench.score(4000, shift=5.0)
    assert bench.models.rollbacks == []


def test_a_drift_after_the_probation_rolls_nothing_back(bench: Bench) -> None:
    bench.swap(2, Flagger(0.95))
    bench.score(10_000)
    bench.score(10_000, shift=5.0)
    assert bench.models.rollbacks == []


def test_a_short_burst_rolls_nothing_back(bench: Bench) -> None:
    bench.swap(2, Flagger(1.5))
    bench.score(3, shift=1.0, batch=3)
    bench.score(4000)
    assert bench.models.rollbacks == []


def test_the_first_model_has_nothing_to_go_back_to() -> None:
    bench = Bench()
    bench.swap(1, Flagger(0.0))
    bench.score(6000)
    assert bench.models.rollbacks == []


def test_what_a_rollback_brought_back_is_not_on_probation(bench: Bench) -> None:
    first = bench.current
    bench.swap(2, Flagger(0.5))
    bench.score(3000)
    bench.swap(1, first.model)
    bench.score(9000, shift=5.0)
    assert len(bench.models.rollbacks) == 1


def test_of_what_a_rollback_took_out_of_use_nothing_is_kept(bench: Bench) -> None:
    first = bench.current
    bench.swap(2, Flagger(0.5))
    bench.score(3000)
    bench.swap(1, first.model)
    bench.score(250)
    assert bench.models.previous is None


def test_two_swaps_within_a_batch_leave_the_last_one_on_probation(bench: Bench) -> None:
    first = bench.current
    bench.swap(2, Flagger(0.95))
    bench.score(250)
    bench.swap(1, first.model)
    late = bench.current
    bench.swap(3, Flagger(0.5))
    features = {"x": bench.rng.random(250)}
    bench.watch.observe(late, features, late.model.score(features).flagged)
    bench.score(3000)
    assert [(version, previous) for version, previous, _ in bench.models.rollbacks] == [(3, 1)]


def test_a_model_that_goes_blind_is_told_and_stays(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.swap(1, Flagger(0.8))
    bench.swap(2, Flagger(9.0))
    bench.score(10_000)
    assert bench.models.rollbacks == []
    assert "may be blind" in caplog.text


def test_an_old_model_that_cannot_score_ends_the_probation_and_nothing_else(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.swap(1, Broken(0.9))
    bench.swap(2, Flagger(0.0))
    bench.score(2000)
    assert bench.models.rollbacks == []
    assert caplog.text.count("version 1 cannot score along") == 1


def test_of_pictures_a_stand_in_bounds_nobody_but_for_the_absolute_bound(bench: Bench) -> None:
    bench.swap(1, Flagger(1.0, takes_pictures=True, representation_name="pixels"))
    bench.swap(2, Flagger(0.8, takes_pictures=True, representation_name="cutpaste"))
    bench.score(4000, batch=10)
    assert bench.models.rollbacks == []
    bench.swap(3, Flagger(1.0, takes_pictures=True, representation_name="cutpaste"))
    bench.swap(4, Flagger(0.8, takes_pictures=True, representation_name="cutpaste"))
    bench.score(4000, batch=10)
    assert [version for version, _, _ in bench.models.rollbacks] == [4]


# Shadow


def test_a_waiting_challenger_scores_along_and_both_shares_are_shown(bench: Bench) -> None:
    bench.models.challenger = live(7, Flagger(0.9))
    bench.score(50_000)
    assert bench.value("srr_shadow_flagged_ratio", model="challenger") == pytest.approx(0.1, abs=0.02)
    assert bench.value("srr_shadow_flagged_ratio", model="live") == pytest.approx(0.01, abs=0.01)
    flagged = bench.value("srr_shadow_records_total", verdict="flagged") or 0.0
    normal = bench.value("srr_shadow_records_total", verdict="normal") or 0.0
    assert flagged + normal == 5000
    assert bench.shadow.text.startswith(f"version 7 waits: it flags {flagged / 5000:.2%} of 5,000 live records")


def test_another_challenger_is_counted_from_the_beginning_and_none_is_nothing(bench: Bench) -> None:
    bench.models.challenger = live(7, Flagger(0.0))
    bench.score(1000)
    bench.models.challenger = live(8, Flagger(2.0))
    bench.score(500)
    assert bench.value("srr_shadow_flagged_ratio", model="challenger") == 0.0
    assert "of 50 live records" in bench.shadow.text
    bench.swap(2, Flagger(0.99))
    bench.score(250)
    assert "of 25 live records" in bench.shadow.text, "another live model is another comparison"
    bench.models.challenger = None
    bench.score(250)
    assert bench.value("srr_shadow_flagged_ratio", model="challenger") is None
    assert bench.shadow.text == ""


def test_a_challenger_that_became_the_live_model_does_not_score_beside_itself(bench: Bench) -> None:
    bench.models.challenger = live(7, Flagger(0.9))
    bench.swap(7, Flagger(0.9))
    bench.score(250)
    assert bench.value("srr_shadow_flagged_ratio", model="challenger") is None


def test_a_challenger_that_fails_is_dropped_and_live_scoring_goes_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.models.challenger = live(7, Broken(0.5))
    bench.score(2000)
    assert bench.models.challenger is None
    assert caplog.text.count("version 7 cannot score live records") == 1


def test_a_batch_without_a_good_record_is_no_batch(bench: Bench) -> None:
    bench.models.challenger = live(7, Broken(0.5))
    bench.swap(2, Flagger(0.5))
    nothing = {"x": np.empty(0)}
    bench.watch.observe(bench.current, nothing, np.empty(0, dtype=bool))
    bench.shadow.observe(bench.current, nothing, np.empty(0, dtype=bool))
    assert bench.models.challenger is not None
    assert bench.models.previous is not None


@pytest.mark.parametrize(("n", "m"), [(5000, 500), (128, 13), (1, 1)])
def test_a_tenth_of_a_batch_is_scored_by_the_other_from_its_beginning_to_its_end(n: int, m: int) -> None:
    model: Any = Flagger(n - 1)
    features = {"x": np.arange(float(n))}
    mine, theirs = side_by_side(model, features, features["x"] == 0.0)
    assert model.n_scored == len(mine) == len(theirs) == m
    assert np.flatnonzero(mine).tolist() == [0]
    assert np.flatnonzero(theirs).tolist() == [m - 1]


# Changed settings


def with_rate(bench: Bench, rate: float) -> None:
    """Have all three models judge by another α, as the live model does: by other objects."""
    for name in ("current", "previous", "challenger"):
        one = getattr(bench.models, name)
        if one is not None:
            model = Flagger(one.model.limit)
            model.false_alarm_rate = rate
            setattr(bench.models, name, live(one.version, model))


def test_by_another_rate_both_models_of_a_probation_are_counted_anew(bench: Bench) -> None:
    bench.swap(2, Flagger(0.99))
    bench.score(1000)
    former = bench.models.previous.model
    n_before = former.n_scored
    with_rate(bench, 0.05)
    bench.models.previous.model.limit = bench.current.model.limit = 0.0
    bench.score(250)
    assert bench.value("srr_probation_flagged_ratio", model="live") == 1.0, "what was flagged before does not count"
    assert bench.value("srr_probation_flagged_ratio", model="previous") == 1.0
    assert former.n_scored == n_before, "the one by the former rate is not asked any more"
    assert bench.models.rollbacks == []


def test_by_another_rate_the_challenger_is_counted_anew(bench: Bench) -> None:
    bench.models.challenger = live(7, Flagger(0.0))
    bench.score(1000)
    with_rate(bench, 0.05)
    bench.score(250)
    assert "of 25 live records" in bench.shadow.text


def test_other_bounds_hold_for_the_probation_that_runs(bench: Bench) -> None:
    bench.swap(2, Flagger(0.8))
    bench.watch.set_bounds(max_flagged_ratio=0.9, max_flagged_factor=100.0, probation=10_000)
    bench.score(5000)
    assert bench.models.rollbacks == []
    bench.watch.set_bounds(max_flagged_ratio=0.1, max_flagged_factor=100.0, probation=10_000)
    bench.score(250)
    assert len(bench.models.rollbacks) == 1


def test_a_watch_that_is_ended_lets_the_replaced_model_go_and_shows_nothing(bench: Bench) -> None:
    bench.swap(2, Flagger(0.99))
    bench.score(1000)
    bench.watch.end()
    assert bench.models.previous is None
    assert bench.value("srr_probation_flagged_ratio", model="live") is None


# Settings


def settings_with(gate: dict[str, Any]) -> Settings:
    return check_settings(
        {
            "kafka": {"bootstrap_servers": "nowhere:9092"},
            "input": {"topics": ["events"], "start": "earliest"},
            "record": {"fields": [{"name": "x"}]},
            "output": {"alerts_topic": "alerts", "dead_letter_topic": "dead"},
            "gate": gate,
        },
        use_environment=False,
    )


def test_the_watch_is_made_of_the_gates_settings_or_not_at_all(bench: Bench) -> None:
    models: Any = bench.models
    assert assembly.make_swap_watch(settings_with({"auto_rollback": False}), models, bench.metrics) is None
    bench.watch = assembly.make_swap_watch(  # type: ignore[assignment]  # it is one, or the next line fails
        settings_with({"probation": 5000, "max_flagged_ratio": 0.9, "max_flagged_factor": 80.0}), models, bench.metrics
    )
    bench.score(250)
    bench.swap(2, Flagger(0.5))
    bench.score(5000)
    assert bench.models.rollbacks == []
    assert bench.models.previous is None, "the probation is over"


def test_the_gate_has_the_bounds_of_the_settings() -> None:
    settings = settings_with({"max_forgotten_ratio": None, "max_flagged_ratio": 0.2})
    bounds = asdict(assembly.make_gate_bounds(settings))
    assert bounds == {name: getattr(settings.gate, name) for name in bounds}
    assert bounds["max_forgotten_ratio"] is None
