"""Slow poisoning is stopped before a known attack is forgotten, and streams that change by themselves are followed.

The labelled streams are records of the shipped KDD set: normal connections, and one kind of attack of which a per cent
more comes with every window. Half of the attack's records are the poison; the other half, never seen in a window, tells
what the live model still recalls.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from consumers.decoding import JsonDecoder
from consumers.logs import MemoryLog
from consumers.records import Field, RecordSchema, StoredRecord
from consumers.windows import WindowReader
from models.detector import Scores
from models.presets import PRESETS
from srr_stream.data import Dataset, load
from srr_stream.errors import RegistryError
from srr_stream.gate import CHECKS, GateBounds
from srr_stream.health import Health
from srr_stream.metrics import TrainerMetrics
from srr_stream.poisoning import (
    Comparison,
    Profile,
    Reference,
    compare,
    load_reference,
    reference_checks,
    reference_of,
    to_manifest,
)
from srr_stream.registry import Registry
from srr_stream.trainer import Outcome, Plan, Trainer

N = 2000
CONFIG = PRESETS["goad"].closed_form()
BOUNDS = GateBounds(
    max_excluded_ratio=0.5,
    max_flagged_ratio=0.3,
    max_flagged_factor=10.0,
    min_synthetic_auc_margin=-0.1,
    max_forgotten_ratio=0.02,
)


class Bench:
    """A trainer on a log in memory, which is given a window after the other."""

    def __init__(self, folder: Path, schema: RecordSchema, **options: Any) -> None:
        self.log = MemoryLog()
        self.registry = Registry(str(folder), keep=options.pop("keep", 100))
        self.metrics = CollectorRegistry()
        self.decoder = JsonDecoder(schema)
        self.gate = replace(BOUNDS, **options.pop("gate", {}))
        self.trainer = Trainer(
            WindowReader(self.log, self.decoder, mode="latest", max_size=N, seed=0),
            self.registry,
            schema,
            CONFIG,
            gate=self.gate,
            metrics=TrainerMetrics(self.metrics),
            health=Health(live_timeout_s=60),
            min_size=200,
            min_interval_s=60,
            **options,
        )

    def train(self, values: list[bytes]) -> Outcome:
        for value in values:
            self.log.append("events", value)
        return self.trainer.train(Plan("a window", CONFIG))

    def flagged(self, values: list[bytes]) -> float:
        """Return the share that the champion flags."""
        champion = self.registry.pointer().champion
        assert champion is not None
        batch = self.decoder.decode([StoredRecord("t", 0, i, 0, None, value) for i, value in enumerate(values)]).batch
        return float(self.registry.load(champion)[0].score(batch.features).flagged.mean())


# Labelled streams


@dataclass(frozen=True)
class Attacked:
    """Windows with ever more of one attack, and records of it that are in none."""

    windows: list[list[bytes]]
    unseen: list[bytes]


@cache
def kdd() -> tuple[Dataset, NDArray[np.object_], NDArray[np.str_]]:
    dataset = load("kdd")
    assert dataset.kinds is not None
    return dataset, np.array(list(dataset.values()), dtype=object), np.array(dataset.kinds)


def attacked(kind: str, n_windows: int, *, step: float = 0.01, seed: int = 0) -> Attacked:
    """Window w has w times `step` of the attack, and 2 % of all the others as ever."""
    _, values, kinds = kdd()
    rng = np.random.default_rng(seed)
    normal = np.flatnonzero(kinds[:30_000] == "normal")
    attack = rng.permutation(np.flatnonzero(kinds == kind))
    others = np.flatnonzero((kinds != "normal") & (kinds != kind))
    windows = []
    for window in range(n_windows):
        n_poison, n_others = round(window * step * N), round(0.02 * N)
        rows = np.concatenate(
            [
                rng.choice(normal, N - n_poison - n_others, replace=False),
                rng.choice(attack[::2], n_poison),
                rng.choice(others, n_others),
            ]
        )
        windows.append(values[rng.permutation(rows)].tolist())
    return Attacked(windows, values[attack[1::2]].tolist())


def recalls(bench: Bench, stream: Attacked) -> list[float]:
    """Train on every window, and return what the live model flags of the unseen attacks after each."""
    found = []
    for window in stream.windows:
        bench.train(window)
        found.append(bench.flagged(stream.unseen))
    return found


ATTACKS = ("back", "teardrop", "portsweep")
N_WINDOWS = 8


@pytest.mark.parametrize("kind", ATTACKS)
def test_slow_poisoning_is_stopped_before_recall_of_the_attack_halves(kind: str, tmp_path: Path) -> None:
    stream = attacked(kind, N_WINDOWS)
    bench = Bench(tmp_path, kdd()[0].schema)
    found = recalls(bench, stream)
    assert found[0] > 0.9
    assert min(found) > found[0] / 2
    last = bench.registry.manifest(bench.registry.versions()[-1])
    assert last.gate["passed"] is False
    assert "forgotten_ratio" in last.gate["reason"]
    assert "looks like slow poisoning: version 1, the reference" in last.gate["reason"]
    assert "promote this version by hand" in last.gate["reason"]


@pytest.mark.parametrize("kind", ATTACKS)
def test_without_the_guard_the_same_poisoning_halves_recall(kind: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, kdd()[0].schema, gate={"max_forgotten_ratio": None})
    found = recalls(bench, attacked(kind, N_WINDOWS))
    assert found[0] > 0.9
    assert min(found) < found[0] / 2
    assert bench.registry.pointer().champion == N_WINDOWS, "nothing else stops it"


def test_while_it_is_stopped_the_live_model_goes_on_flagging_the_poison_and_the_metrics_say_so(tmp_path: Path) -> None:
    stream = attacked("teardrop", 8)
    bench = Bench(tmp_path, kdd()[0].schema)
    assert recalls(bench, stream)[-1] > 0.9
    assert bench.metrics.get_sample_value("srr_training_forgotten_ratio") == pytest.approx(0.07, abs=0.02)
    assert (bench.metrics.get_sample_value("srr_gate_check", {"check": "forgotten_ratio"}) or 0.0) > 0.02
    assert bench.metrics.get_sample_value("srr_gate_check", {"check": "reference_flagged_ratio"}) == pytest.approx(
        0.11, abs=0.03
    )


def test_windows_that_do_not_change_are_never_held_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path, kdd()[0].schema)
    outcomes = [bench.train(window) for window in attacked("back", 8, step=0.0).windows]
    assert all(outcome.promoted for outcome in outcomes)
    assert {check.name for check in outcomes[-1].report.checks} == set(CHECKS)


def test_what_a_person_promotes_after_a_rejection_is_the_next_reference(tmp_path: Path) -> None:
    stream = attacked("teardrop", 8)
    bench = Bench(tmp_path, kdd()[0].schema)
    recalls(bench, stream)
    rejected = bench.registry.versions()[-1]
    bench.registry.promote(rejected, reason="these are our new load tests")
    assert bench.train(stream.windows[-1]).promoted
    manifest = bench.registry.manifest(bench.registry.versions()[-1])
    assert manifest.gate["reference"]["version"] == rejected


# Streams that change by themselves

MOVING = RecordSchema(tuple(Field(f"x{j}") for j in range(5)))


def moving(mean: Callable[[int], float], n_windows: int) -> Iterator[list[bytes]]:
    """Five numbers that hang together, 3 % of them far out; the mean of all moves, in deviations."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 5))
    scale = np.sqrt(np.square(mixing).sum(axis=0))
    for window in range(n_windows):
        X = rng.normal(size=(N, 5)) @ mixing + mean(window) * scale
        is_anomaly = rng.random(N) < 0.03
        X[is_anomaly] += rng.choice([-6.0, 6.0], size=(int(is_anomaly.sum()), 1)) * scale
        yield [json.dumps({f"x{j}": value for j, value in enumerate(row)}).encode() for row in X.tolist()]


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("gradual", lambda window: 0.1 * window),
        ("fast", lambda window: 0.5 * window),
        ("step", lambda window: 3.0 if window >= 4 else 0.0),
        ("step and back", lambda window: 3.0 if 4 <= window < 8 else 0.0),
    ],
)
def test_a_stream_that_moves_as_a_whole_is_followed(name: str, mean: Callable[[int], float], tmp_path: Path) -> None:
    bench = Bench(tmp_path, MOVING)
    windows = list(moving(mean, 20))
    held, flagged = [], []
    for window in windows:
        held.append(not bench.train(window).promoted)
        flagged.append(bench.flagged(window))
    assert max(flagged) < 0.15, "no window after a training is flagged by the model in use"
    assert sum(held) <= 2
    assert not held[-1]


def test_kdds_own_change_of_traffic_leaves_no_model_in_use_that_flags_it_for_ever(tmp_path: Path) -> None:
    """Between records 36,000 and 45,000 http falls from 85 % to a third of the connections, and new kinds appear."""
    dataset, values, _ = kdd()
    bench = Bench(tmp_path, dataset.schema)
    flagged, promoted = [], []
    for start in range(32_000, 60_000, N):
        window = values[start : start + N].tolist()
        promoted.append(bench.train(window).promoted)
        flagged.append(bench.flagged(window))
    assert any(promoted[-3:])
    assert float(np.mean(flagged[-4:])) < 0.15
    assert max(flagged[-4:]) < 0.3


# Comparison, by hand


def scores(flagged: list[bool], p_value: list[float] | None = None) -> Scores:
    p = np.array(p_value or [0.001 if f else 0.5 for f in flagged])
    return Scores(-np.log(p), p, np.zeros(len(p)), np.array(flagged))


def a_reference(**changes: Any) -> Reference:
    model: Any = None
    return replace(Reference(3, model, Profile(0.05, 0.5), 0.05, 0.10, 0.04), **changes)


REPORT: Any = SimpleNamespace(excluded_ratio=0.12, contamination_ratio=0.03)


def comparison_of(theirs: Scores, mine: Scores, **changes: Any) -> Comparison:
    return compare(a_reference(**changes), theirs, mine, np.ones(len(mine.flagged), dtype=bool), REPORT)


def shares(flagged: float, forgotten: float, n: int = 1000, typical: float = 0.5) -> tuple[Scores, Scores]:
    is_flagged = np.arange(n) < round(flagged * n)
    is_forgotten = np.arange(n) < round(forgotten * n)
    p = np.where(is_flagged, 0.001, typical)
    return scores(is_flagged.tolist(), p.tolist()), scores((is_flagged & ~is_forgotten).tolist())


def test_a_comparison_counts_what_the_reference_flags_and_the_challenger_does_not() -> None:
    theirs = scores([True, True, True, False, False, False, False, False])
    mine = scores([True, False, False, True, False, False, False, False])
    kept = np.array([False, True, True, True, True, True, True, True])
    found = compare(a_reference(), theirs, mine, kept, REPORT)
    assert found.forgotten_ratio == 2 / 8
    assert found.refined_ratio == 2 / 7
    assert found.profile == Profile(3 / 8, 0.5)
    assert found.excluded_rise == pytest.approx(0.02)
    assert found.contamination_rise == pytest.approx(-0.01)


def test_more_forgotten_than_chance_explains_is_held_against_the_challenger() -> None:
    found = comparison_of(*shares(0.09, 0.06))
    assert 0.05 < found.slow_ratio < 0.06
    check = reference_checks(found, 0.02)[0]
    assert (check.name, check.passed, check.bound) == ("forgotten_ratio", False, "≤ 0.02")
    assert reference_checks(found, 0.055)[0].passed


def test_a_few_forgotten_records_of_a_small_window_are_chance() -> None:
    assert comparison_of(*shares(0.09, 0.03, n=100)).slow_ratio < 0.02


def test_a_jump_is_not_held_against_the_challenger_but_what_was_there_before_it_is() -> None:
    assert comparison_of(*shares(0.25, 0.2)).slow_ratio == 0.0
    assert comparison_of(*shares(0.25, 0.2), last_flagged_ratio=0.22).slow_ratio > 0.15
    assert comparison_of(*shares(0.25, 0.2), last_flagged_ratio=0.15).slow_ratio > 0.06


def test_where_the_typical_record_moves_forgetting_is_right() -> None:
    assert comparison_of(*shares(0.09, 0.06, typical=0.26)).slow_ratio > 0.02
    moved = comparison_of(*shares(0.09, 0.06, typical=0.24))
    assert moved.has_moved
    assert moved.slow_ratio == 0.0


def test_a_reference_that_flags_most_of_the_stream_has_nothing_to_say() -> None:
    assert comparison_of(*shares(0.51, 0.5), last_flagged_ratio=0.5).slow_ratio == 0.0
    assert comparison_of(*shares(0.5, 0.49), last_flagged_ratio=0.49).slow_ratio > 0.4


def test_refinement_that_keeps_nothing_and_scores_that_are_none_are_no_error() -> None:
    theirs, mine = scores([True, True], [0.001, np.nan]), scores([True, True])
    found = compare(a_reference(), theirs, mine, np.zeros(2, dtype=bool), REPORT)
    assert found.refined_ratio == 0.0
    assert found.profile == Profile(1.0, 0.0)


# Which version is the reference


def manifest(version: int, gate: Mapping[str, Any]) -> Any:
    return SimpleNamespace(version=version, gate=gate)


def test_a_champion_hands_its_reference_on_unless_it_succeeded_it() -> None:
    profile = Profile(0.05, 0.5)
    assert reference_of(manifest(4, {})) == 4
    assert reference_of(manifest(4, to_manifest(profile, None, 0.02))) == 4
    little, much = comparison_of(*shares(0.06, 0.01)), comparison_of(*shares(0.09, 0.06))
    assert reference_of(manifest(4, to_manifest(profile, little, 0.02))) == 3
    assert reference_of(manifest(4, to_manifest(profile, much, 0.02))) == 4
    jumped = comparison_of(*shares(0.25, 0.2))
    assert reference_of(manifest(4, to_manifest(profile, jumped, 0.02))) == 4


@pytest.fixture
def trained(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path, MOVING)
    for window in moving(lambda window: 0.0, 3):
        assert bench.train(window).promoted
    return bench


def test_the_reference_is_loaded_with_what_it_flagged_last(trained: Bench) -> None:
    champion = trained.registry.manifest(3)
    found = load_reference(trained.registry, champion)
    assert found is not None
    assert found.version == 1
    assert found.last_flagged_ratio == champion.gate["reference"]["flagged_ratio"]
    assert found.pinned == Profile(**trained.registry.manifest(1).gate["profile"])


def test_a_person_may_pin_a_version(trained: Bench) -> None:
    found = load_reference(trained.registry, trained.registry.manifest(3), 2)
    assert found is not None
    assert found.version == 2
    assert found.last_flagged_ratio == found.pinned.flagged_ratio, "nothing is known of it since it was trained"


def test_a_pinned_version_that_is_not_there_is_told(trained: Bench) -> None:
    with pytest.raises(RegistryError, match=r"gate\.reference_version: is 9; allowed: a version of registry"):
        load_reference(trained.registry, trained.registry.manifest(3), 9)


@pytest.mark.parametrize("damage", ["gone", "torn", "another schema"])
def test_a_reference_that_cannot_be_used_is_succeeded_by_the_next_champion(
    trained: Bench, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "versions" / "1"
    champion = trained.registry.manifest(3)
    if damage == "gone":
        (folder / "manifest.json").unlink()
    elif damage == "torn":
        (folder / "model.safetensors").write_bytes(b"torn")
    else:
        champion = replace(champion, schema_digest="another")
    with caplog.at_level(logging.WARNING):
        assert load_reference(trained.registry, champion) is None
    assert "version 1" in caplog.text
    assert "cannot be the reference" in caplog.text


def test_versions_of_a_program_that_knew_no_reference_are_followed_by_ones_that_do(trained: Bench) -> None:
    old = trained.registry.manifest(3)
    weights = (Path(trained.registry.url) / "versions" / "3" / "model.safetensors").read_bytes()
    gate = {key: value for key, value in old.gate.items() if key not in ("profile", "reference")}
    version = trained.registry.publish(replace(old, gate=gate), weights).version
    trained.registry.promote(version)
    assert load_reference(trained.registry, trained.registry.manifest(version)) is None
    (window,) = moving(lambda window: 0.0, 1)
    outcome = trained.train(window)
    assert outcome.promoted
    assert outcome.manifest.gate["reference"] is None
    assert reference_of(outcome.manifest) == outcome.manifest.version


def test_the_reference_outlives_any_number_of_rejected_versions_and_is_let_go_once_it_is_succeeded(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path, MOVING, keep=2)
    (first,) = moving(lambda window: 0.0, 1)
    for _ in range(3):
        assert bench.train(first).promoted
    bench.trainer._gate = replace(BOUNDS, max_excluded_ratio=1e-9)
    for _ in range(3):
        assert not bench.train(first).promoted
    assert bench.registry.versions() == (1, 2, 3, 5, 6), "the reference, previous, the champion, and the newest two"
    bench.trainer._gate = BOUNDS
    (moved,) = moving(lambda window: 3.0, 1)
    for _ in range(4):
        assert bench.train(moved).promoted
    assert reference_of(bench.registry.manifest(10)) == 7
    assert bench.registry.versions() == (7, 9, 10)
