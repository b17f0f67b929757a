"""The trainer on a log in memory: when it trains, what it publishes, and what it says when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.contextvars import get_contextvars

from consumers.decoding import JsonDecoder
from consumers.errors import BrokerUnavailable
from consumers.logs import MemoryLog
from consumers.records import Field, FieldKind, RecordSchema, StoredRecord
from consumers.windows import WindowReader
from models.persistence import model_to_parts
from models.training import TrainingConfig
from srr_stream.errors import NoLabelTopic, NotEnoughRecords
from srr_stream.gate import CHECKS, GateBounds
from srr_stream.health import Health
from srr_stream.labels import Label, LabelBook, label_to_json
from srr_stream.metrics import TrainerMetrics
from srr_stream.registry import Registry
from srr_stream.trainer import Plan, Status, Trainer
from srr_stream.training_record import load_neighbours, load_refinement
from srr_stream.triggers import ClockTrigger, CountTrigger

SCHEMA = RecordSchema(
    (
        Field("duration_ms"),
        Field("bytes_sent"),
        Field("load", is_required=False),
        Field("route", FieldKind.CATEGORICAL),
    )
)
GOAD = {"n_transforms": 8, "n_steps": 30}
BOUNDS = GateBounds(
    max_excluded_ratio=0.5,
    max_flagged_ratio=0.3,
    max_flagged_factor=10.0,
    min_synthetic_auc_margin=-0.1,
    max_forgotten_ratio=0.02,
)


class Bench:
    """A trainer with all that it stands on, and a clock that is turned by hand."""

    def __init__(self, folder: Path, *, schema: RecordSchema = SCHEMA, **options: Any) -> None:
        self.now = 0.0
        self.log = MemoryLog()
        self.registry = Registry(str(folder / "registry"))
        self.metrics_registry = CollectorRegistry()
        self.health = Health(live_timeout_s=60, clock=lambda: self.now)
        self.statuses: list[Status] = []
        self.schema = schema
        every = options.pop("every_s", None)
        count = options.pop("every_records", None)
        representation = options.pop("representation", "identity")
        self.trainer = Trainer(
            WindowReader(self.log, JsonDecoder(schema), mode="latest", max_size=1000, seed=0),
            self.registry,
            schema,
            TrainingConfig(
                representation=representation, representation_options=GOAD if representation == "goad" else {}
            ),
            gate=replace(BOUNDS, **options.pop("gate", {})),
            mode=options.pop("mode", "automatic"),
            reference_version=options.pop("reference_version", None),
            metrics=TrainerMetrics(self.metrics_registry),
            health=self.health,
            min_size=options.pop("min_size", 200),
            min_interval_s=60,
            every=ClockTrigger(every, clock=lambda: self.now) if every else None,
            count=CountTrigger(count) if count else None,
            read_labels=options.pop("read_labels", None),
            on_status=self.statuses.append,
            clock=lambda: self.now,
        )

    def append(self, values: list[bytes]) -> None:
        for value in values:
            self.log.append("events", value)

    def runs(self, outcome: str) -> float:
        return self.metrics_registry.get_sample_value("srr_training_runs_total", {"outcome": outcome}) or 0.0

    def decisions(self, decision: str) -> float:
        return self.metrics_registry.get_sample_value("srr_gate_decisions_total", {"decision": decision}) or 0.0

    def check(self, name: str) -> float | None:
        return self.metrics_registry.get_sample_value("srr_gate_check", {"check": name})


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_an_empty_topic_is_waited_for_with_a_reason_in_numbers(bench: Bench) -> None:
    assert bench.trainer.turn() is None
    assert not bench.health.is_ready
    assert "0 of 200" in bench.health.reason
    assert bench.registry.versions() == ()


def test_a_window_below_min_size_is_waited_for(bench: Bench, make_values: Callable[..., list[bytes]]) -> None:
    bench.append(make_values(199))
    assert bench.trainer.turn() is None
    assert "199 of 200" in bench.health.reason
    assert bench.statuses[-1].n_records == 199


def test_the_first_model_is_identity_and_the_configured_one_follows_at_once(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path, representation="goad", mode="off")
    bench.append(make_values(400))
    first, second = bench.trainer.turn(), bench.trainer.turn()
    assert first is not None
    assert second is not None
    assert first.manifest.model["representation"] == "identity"
    assert second.manifest.model["representation"] == "goad"
    assert bench.registry.pointer().champion == 2
    assert bench.trainer.turn() is None
    assert bench.health.is_ready


def test_a_manifest_names_the_offsets_that_give_the_same_window_again(
    bench: Bench, make_values: Callable[..., list[bytes]]
) -> None:
    bench.append([*make_values(300), b"not json"])
    outcome = bench.trainer.turn()
    assert outcome is not None
    assert outcome.manifest.window["ranges"] == [{"topic": "events", "partition": 0, "start": 0, "stop": 301}]
    assert outcome.manifest.window["n_records"] == 300
    assert outcome.manifest.window["n_bad"] == 1


def test_the_clock_makes_a_training_due(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> None:
    bench = Bench(tmp_path, every_s=900)
    bench.append(make_values(300))
    assert bench.trainer.turn() is not None
    bench.now = 899
    assert bench.trainer.turn() is None
    bench.now = 900
    outcome = bench.trainer.turn()
    assert outcome is not None
    assert outcome.manifest.reason == "900 s since the last training"


def test_enough_new_records_make_a_training_due(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> None:
    bench = Bench(tmp_path, every_records=100)
    bench.append(make_values(300))
    assert bench.trainer.turn() is not None
    bench.append(make_values(99, seed=1))
    assert bench.trainer.turn() is None
    bench.append(make_values(1, seed=2))
    assert bench.trainer.turn() is not None


def test_a_request_is_taken_once_and_not_before_the_rest_is_over(
    bench: Bench, make_values: Callable[..., list[bytes]]
) -> None:
    bench.append(make_values(300))
    assert bench.trainer.turn() is not None
    bench.registry.request_training("a person")
    assert bench.trainer.turn() is None
    bench.now = 60
    outcome = bench.trainer.turn()
    assert outcome is not None
    assert outcome.manifest.reason == "a person"
    bench.now = 120
    assert bench.trainer.turn() is None


def test_records_that_all_fail_the_schema_are_named_with_their_reason(bench: Bench) -> None:
    bench.append([b'{"something": "else"}'] * 250)
    assert bench.trainer.turn() is None
    assert not bench.health.is_ready
    assert "0 of 250 records" in bench.health.reason
    assert "missing_field 250" in bench.health.reason
    assert bench.runs("failed") == 1
    with pytest.raises(NotEnoughRecords):
        bench.trainer.train(Plan("by hand", "identity"))


def test_a_registry_that_cannot_be_written_is_told_and_tried_again(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path)
    bench.append(make_values(300))
    blocked = tmp_path / "registry"
    blocked.write_text("a file where the folder should be")
    assert bench.trainer.turn() is None
    assert "registry" in bench.health.reason
    blocked.unlink()
    bench.now = 2
    bench.trainer.turn()
    bench.now = 200
    bench.trainer.turn()
    assert bench.registry.pointer().champion == 1


def test_a_registry_where_nothing_can_be_made_is_known_before_the_training_and_not_after_it(
    bench: Bench, make_values: Callable[..., list[bytes]]
) -> None:
    bench.append(make_values(300))
    bench.trainer._registry = Registry("/proc/no-folder-can-be-made-here")
    assert bench.trainer.turn() is None
    assert not bench.health.is_ready
    assert "cannot write" in bench.health.reason
    assert "check registry.url, rights and space" in bench.health.reason
    assert "training" not in {status.phase for status in bench.statuses}


def test_rests_grow_with_each_failure_in_a_row(bench: Bench) -> None:
    bench.append([b"no json"] * 250)
    waits = []
    for _ in range(3):
        started = bench.now
        bench.trainer.turn()
        failures = bench.runs("failed")
        while bench.runs("failed") == failures:
            bench.now += 1
            bench.trainer.turn()
        waits.append(bench.now - started)
    assert waits == sorted(waits)
    assert waits[-1] >= 2 * waits[0]


def test_a_rejected_model_is_kept_with_its_report_and_the_champion_stays(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path, every_s=10, gate={"max_flagged_ratio": 0.0001})
    bench.append(make_values(600, contamination=0.1))
    outcome = bench.trainer.turn()
    assert outcome is not None
    assert not outcome.promoted
    assert bench.registry.pointer().champion is None
    assert bench.registry.manifest(1).gate["passed"] is False
    assert "flagged_ratio" in bench.registry.manifest(1).gate["reason"]
    assert bench.runs("rejected") == 1
    assert "the first model was rejected by the gate: flagged_ratio" in bench.health.reason
    assert bench.trainer.turn() is None, "a rejected first model is not trained again at once"
    bench.now = 60
    assert bench.trainer.turn() is not None


def test_the_gate_can_be_switched_off(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> None:
    bench = Bench(tmp_path, mode="off", gate={"max_flagged_ratio": 0.0001})
    bench.append(make_values(600, contamination=0.1))
    outcome = bench.trainer.turn()
    assert outcome is not None
    assert outcome.promoted
    assert bench.registry.manifest(1).gate["passed"] is False


def test_a_champion_of_another_schema_is_replaced_from_the_beginning(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    old = Bench(tmp_path)
    old.append(make_values(300))
    assert old.trainer.turn() is not None
    new = Bench(tmp_path, schema=RecordSchema(SCHEMA.fields[:2]))
    new.append(make_values(300))
    outcome = new.trainer.turn()
    assert outcome is not None
    assert outcome.manifest.version == 2
    assert outcome.manifest.reason == "cold start"


def test_a_lost_log_is_a_readable_reason_and_no_failed_training(bench: Bench) -> None:
    class LostLog(MemoryLog):
        def ends(self) -> Any:
            raise BrokerUnavailable("no broker answers at nowhere:9092")

    trainer = Trainer(
        WindowReader(LostLog(), JsonDecoder(SCHEMA), mode="latest", max_size=1000, seed=0),
        bench.registry,
        SCHEMA,
        TrainingConfig(representation="identity"),
        gate=BOUNDS,
        metrics=TrainerMetrics(CollectorRegistry()),
        health=bench.health,
        min_size=200,
        min_interval_s=60,
        clock=lambda: bench.now,
    )
    assert trainer.turn() is None
    assert "nowhere:9092" in bench.health.reason
    assert bench.runs("failed") == 0


def test_being_told_to_stop_ends_a_training_at_its_next_word(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    def stop(status: Status) -> None:
        if status.phase == "training":
            raise InterruptedError

    bench = Bench(tmp_path)
    bench.append(make_values(300))
    bench.trainer._on_status = stop
    with pytest.raises(InterruptedError):
        bench.trainer.turn()
    assert bench.registry.versions() == ()


# A person promotes


def test_in_manual_mode_what_passes_waits_and_a_newer_one_takes_its_place(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path, every_s=10, mode="manual")
    bench.append(make_values(400))
    assert bench.trainer.turn() is not None
    bench.registry.promote(1)
    for version in (2, 3):
        bench.now += 10
        outcome = bench.trainer.turn()
        assert outcome is not None
        assert (outcome.decision, outcome.promoted) == ("waiting", False)
        pointer = bench.registry.pointer()
        assert (pointer.champion, pointer.challenger) == (1, version)
    assert bench.decisions("waiting") == 3
    assert bench.runs("published") == 3
    bench.trainer.turn()
    assert "version 1 is in use, version 3 waits for a person" in bench.health.reason
    bench.registry.promote(3)
    bench.trainer.turn()
    assert bench.health.reason == "version 3 is in use; waiting until a training is due"


def test_in_manual_mode_a_rejected_model_does_not_take_the_place_of_one_that_waits(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path, every_s=10, mode="manual")
    bench.append(make_values(400))
    assert bench.trainer.turn() is not None
    bench.trainer._gate = replace(BOUNDS, max_excluded_ratio=1e-9)
    bench.now = 10
    outcome = bench.trainer.turn()
    assert outcome is not None
    assert outcome.decision == "rejected"
    assert bench.registry.pointer().challenger == 1


def test_in_manual_mode_the_first_model_waits_too_and_is_not_trained_again_and_again(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path, every_s=100, mode="manual")
    bench.append(make_values(400))
    first = bench.trainer.turn()
    assert first is not None
    assert first.decision == "waiting"
    assert bench.trainer.turn() is None
    assert not bench.health.is_ready
    assert "srr-stream models promote 1" in bench.health.reason
    bench.now = 100
    assert bench.trainer.turn() is not None, "a trigger is heeded meanwhile"
    assert bench.registry.pointer().challenger == 2


def test_in_manual_mode_the_successor_of_a_stand_in_is_trained_once_and_then_waits(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path, representation="goad", mode="manual", gate={"min_synthetic_auc_margin": -1.0})
    bench.append(make_values(400))
    bench.trainer.turn()
    bench.registry.promote(1)
    successor = bench.trainer.turn()
    assert successor is not None
    assert successor.decision == "waiting"
    assert bench.trainer.turn() is None


def test_what_waited_is_withdrawn_once_models_are_promoted_by_themselves_again(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path, every_s=10, mode="manual")
    bench.append(make_values(400))
    bench.trainer.turn()
    bench.trainer._mode = "automatic"
    bench.now = 10
    bench.trainer.turn()
    pointer = bench.registry.pointer()
    assert (pointer.champion, pointer.challenger) == (2, None)


# What the gate saw


def test_the_last_report_of_the_gate_is_in_the_metrics(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> None:
    bench = Bench(tmp_path, every_s=10)
    bench.append(make_values(400))
    bench.trainer.turn()
    assert bench.check("flagged_factor") is None, "there was no champion to compare with"
    bench.now = 10
    outcome = bench.trainer.turn()
    assert outcome is not None
    assert {name: bench.check(name) for name in CHECKS} == {c.name: c.value for c in outcome.report.checks}


def test_a_stand_in_is_no_reference_and_its_successor_becomes_one(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path, every_s=10, representation="goad", gate={"min_synthetic_auc_margin": -1.0})
    bench.append(make_values(400))
    for _ in range(2):
        bench.trainer.turn()
    bench.now = 10
    bench.trainer.turn()
    first, second, third = (bench.registry.manifest(version).gate["reference"] for version in (1, 2, 3))
    assert (first, second) == (None, None)
    assert third["version"] == 2


def test_a_reference_that_a_person_pinned_and_that_is_not_there_fails_the_training_with_its_setting(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path, every_s=10, reference_version=77)
    bench.append(make_values(400))
    assert bench.trainer.turn() is not None
    bench.now = 10
    assert bench.trainer.turn() is None
    assert "gate.reference_version: is 77" in bench.health.reason
    assert bench.runs("failed") == 1


def test_the_configured_representations_first_training_is_tried_again_when_it_fails(
    tmp_path: Path, make_values: Callable[..., list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, representation="goad", gate={"min_synthetic_auc_margin": -1.0})
    bench.append(make_values(400))
    bench.trainer.turn()

    def fail(*arguments: Any, **options: Any) -> Any:
        raise MemoryError("not now")

    with monkeypatch.context() as patched:
        patched.setattr("srr_stream.trainer.train", fail)
        assert bench.trainer.turn() is None
    assert bench.trainer.turn() is None, "not before a rest"
    bench.now = 60
    outcome = bench.trainer.turn()
    assert outcome is not None
    assert outcome.manifest.model["representation"] == "goad"


def test_after_a_rollback_the_next_model_is_judged_against_the_restored_champion(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path, every_s=10)
    bench.append(make_values(400))
    for now in (0, 10):
        bench.now = now
        assert bench.trainer.turn() is not None
    bench.registry.rollback(reason="by itself")
    bench.now = 20
    outcome = bench.trainer.turn()
    assert outcome is not None
    assert outcome.promoted
    pointer = bench.registry.pointer()
    assert (pointer.champion, pointer.previous) == (3, 1)


# labels


class Labels:
    """A topic of labels, as the trainer reads it."""

    def __init__(self) -> None:
        self.book = LabelBook()
        self.error: Exception | None = None
        self.n_read = 0

    def say(self, offset: int, name: Any, topic: str = "events") -> None:
        event_id = f"{topic}-0-{offset}"
        label = Label(event_id, name, "", "ann", "2026-01-01", None, None, None, topic, 0, offset, None)
        self.book.update([StoredRecord("labels", 0, self.book.version, 0, event_id.encode(), label_to_json(label))])

    def read(self) -> LabelBook:
        self.n_read += 1
        if self.error is not None:
            raise self.error
        return self.book


def test_labelled_anomalies_are_left_out_and_labelled_normal_records_are_kept(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    without = Bench(tmp_path / "without")
    without.append(make_values(400))
    assert without.trainer.turn() is not None
    before = load_refinement(without.registry, 1)
    assert before is not None
    excluded = [row.offset for row in before.excluded]
    kept = sorted(set(range(400)) - set(excluded))
    labels = Labels()
    for offset in excluded[:5]:
        labels.say(offset, "normal")
    for offset in kept[:3]:
        labels.say(offset, "anomaly")
    labels.say(kept[4], "unsure")
    labels.say(kept[5], "anomaly", "another-topic")
    labels.say(99_999, "anomaly")
    bench = Bench(tmp_path / "with", read_labels=labels.read)
    bench.append(make_values(400))
    outcome = bench.trainer.turn()
    assert outcome is not None
    training = outcome.manifest.training
    assert (training["n_known_anomalies"], training["n_known_normals"]) == (3, 5)
    assert "labels_not_read" not in training
    after = load_refinement(bench.registry, 1)
    assert after is not None
    assert not {row.offset for row in after.excluded} & set(excluded[:5])
    assert {row.offset for row in after.excluded if row.label == "anomaly"} == set(kept[:3])
    neighbours = load_neighbours(bench.registry, 1)
    assert neighbours is not None
    assert not {offset for _, _, offset in neighbours.places} & set(kept[:3])
    assert training["neighbour_radius"] == neighbours.radius > 0.0


@pytest.mark.parametrize("error", [BrokerUnavailable("no answer from kafka:9092"), NoLabelTopic("there is no topic l")])
def test_labels_that_cannot_be_read_do_not_keep_a_training_from_being_made_and_that_is_told(
    error: Exception, tmp_path: Path, make_values: Callable[..., list[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    labels = Labels()
    labels.error = error
    bench, plain = Bench(tmp_path / "a", read_labels=labels.read), Bench(tmp_path / "b")
    outcomes = []
    for each in (bench, plain):
        each.append(make_values(300))
        outcomes.append(each.trainer.turn())
    assert outcomes[0] is not None
    assert outcomes[1] is not None
    assert outcomes[0].manifest.training["labels_not_read"] == str(error)
    assert f"training without labels: {error}" in caplog.text
    assert outcomes[0].manifest.files["model.safetensors"] == outcomes[1].manifest.files["model.safetensors"]


def test_the_same_window_and_seed_without_a_label_give_the_same_bytes(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    labels = Labels()
    labels.say(5, "unsure")
    manifests = []
    for name, read in (("a", None), ("b", labels.read)):
        bench = Bench(tmp_path / name, read_labels=read)
        bench.append(make_values(300))
        outcome = bench.trainer.turn()
        assert outcome is not None
        manifests.append(outcome.manifest)
    assert manifests[0].files == manifests[1].files


def test_a_label_makes_no_training_due(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> None:
    labels = Labels()
    bench = Bench(tmp_path, read_labels=labels.read)
    bench.append(make_values(300))
    assert bench.trainer.turn() is not None
    for offset in range(50):
        labels.say(offset, "anomaly")
        bench.now += 3600
        assert bench.trainer.turn() is None
    assert (bench.registry.versions(), labels.n_read) == ((1,), 1)
    bench.registry.request_training("a person")
    outcome = bench.trainer.turn()
    assert outcome is not None
    assert outcome.manifest.training["n_known_anomalies"] == 50


# Other rules


def adopt(bench: Bench, *, every_s: float | None = None, every_records: int | None = None, **changes: Any) -> None:
    """Give a trainer the rules it has, but for those named."""
    rules: dict[str, Any] = {
        "config": bench.trainer._config,
        "gate": BOUNDS,
        "mode": "automatic",
        "reference_version": None,
        "min_interval_s": 60,
        "every": ClockTrigger(every_s, clock=lambda: bench.now) if every_s else None,
        "count": CountTrigger(every_records) if every_records else None,
    }
    bench.trainer.adopt(**rules | changes)


def test_a_shorter_clock_counts_from_the_last_training(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> None:
    bench = Bench(tmp_path, every_s=900)
    bench.append(make_values(400))
    assert bench.trainer.turn() is not None
    bench.now = 400
    assert bench.trainer.turn() is None
    adopt(bench, every_s=300)
    assert bench.trainer.turn() is not None, "300 s have passed long since"
    bench.now = 500
    assert bench.trainer.turn() is None


def test_a_smaller_count_counts_from_the_last_training(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> None:
    bench = Bench(tmp_path, every_records=1000)
    bench.append(make_values(400))
    assert bench.trainer.turn() is not None
    bench.append(make_values(200))
    assert bench.trainer.turn() is None
    adopt(bench, every_records=150)
    assert bench.trainer.turn() is not None


def test_a_trigger_that_there_was_not_counts_from_now_and_one_may_go(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path)
    bench.append(make_values(400))
    assert bench.trainer.turn() is not None
    bench.now = 5000
    adopt(bench, every_s=300)
    assert bench.trainer.turn() is None
    bench.now = 5300
    assert bench.trainer.turn() is not None
    adopt(bench)
    bench.now = 50_000
    assert bench.trainer.turn() is None


def test_another_gate_and_mode_hold_for_the_next_training(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path, every_s=10)
    bench.append(make_values(400))
    assert bench.trainer.turn() is not None
    adopt(bench, every_s=10, gate=replace(BOUNDS, max_excluded_ratio=1e-9))
    bench.now = 10
    outcome = bench.trainer.turn()
    assert outcome is not None
    assert outcome.decision == "rejected"
    adopt(bench, every_s=10, mode="manual")
    bench.now = 20
    outcome = bench.trainer.turn()
    assert outcome is not None
    assert outcome.decision == "waiting"


def test_a_shorter_rest_lets_a_request_be_taken_sooner(bench: Bench, make_values: Callable[..., list[bytes]]) -> None:
    bench.append(make_values(400))
    assert bench.trainer.turn() is not None
    bench.registry.request_training("by hand")
    bench.now = 10
    assert bench.trainer.turn() is None
    adopt(bench, min_interval_s=5)
    assert bench.trainer.turn() is not None


def test_another_reference_is_kept_from_being_pruned(bench: Bench, make_values: Callable[..., list[bytes]]) -> None:
    bench.append(make_values(400))
    assert bench.trainer.turn() is not None
    adopt(bench, reference_version=1)
    assert bench.registry.pinned == {1}
    adopt(bench)
    assert bench.registry.pinned == set()


def test_another_rate_is_that_of_the_next_model(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> None:
    bench = Bench(tmp_path, every_s=10)
    bench.append(make_values(400))
    assert bench.trainer.turn() is not None
    adopt(bench, every_s=10, config=replace(bench.trainer._config, false_alarm_rate=0.07))
    bench.now = 10
    outcome = bench.trainer.turn()
    assert outcome is not None
    assert bench.registry.load(outcome.manifest.version)[0].false_alarm_rate == 0.07


# Its name


def test_a_training_has_a_name_of_its_own_in_its_manifest_and_in_the_context_of_the_log(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path, every_s=10)
    bench.append(make_values(400))
    runs: list[Any] = []
    bench.trainer._on_status = lambda status: runs.append(get_contextvars().get("run"))
    names = []
    for now in (0, 10):
        bench.now, runs[:] = now, []
        outcome = bench.trainer.turn()
        assert outcome is not None
        names.append(outcome.manifest.training["run"])
        assert set(runs) == {None, names[-1]}, "none while it looks whether one is due"
    assert len(set(names)) == 2
    assert get_contextvars() == {}


def test_rejections_in_a_row_are_counted_until_the_gate_lets_one_pass(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path)
    bench.append(make_values(400))
    seen = []
    for bounds in (BOUNDS, replace(BOUNDS, max_excluded_ratio=1e-9), replace(BOUNDS, max_excluded_ratio=1e-9), BOUNDS):
        bench.trainer._gate = bounds
        bench.trainer.train(Plan("a test", TrainingConfig(representation="identity")))
        seen.append(bench.metrics_registry.get_sample_value("srr_gate_rejections_in_a_row"))
    assert seen == [0, 1, 2, 0]


def test_a_restarted_trainer_tells_of_the_champion_what_the_one_before_told(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    names = [
        "srr_training_last_success_timestamp_seconds",
        "srr_training_excluded_ratio",
        "srr_training_contamination_ratio",
        "srr_ensemble_agreement_ratio",
    ]
    before = Bench(tmp_path)
    before.append(make_values(400, contamination=0.1))
    assert before.trainer.turn() is not None
    after = Bench(tmp_path)
    assert [after.metrics_registry.get_sample_value(name) for name in names] == [0, 0, 0, 0]
    after.append(make_values(400))
    assert after.trainer.turn() is None
    told = [after.metrics_registry.get_sample_value(name) for name in names]
    assert told == pytest.approx([before.metrics_registry.get_sample_value(name) for name in names], abs=5)
    assert told[1:] == [before.metrics_registry.get_sample_value(name) for name in names[1:]]
    assert all(told)


def test_a_manifest_without_a_time_is_no_reason_to_stop(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path)
    bench.append(make_values(400))
    bench.trainer.turn()
    model, manifest = bench.registry.load(1)
    made = bench.registry.publish(replace(manifest, created_at="", training={}), model_to_parts(model)[1])
    bench.registry.promote(made.version)
    after = Bench(tmp_path)
    after.append(make_values(400))
    after.trainer.turn()
    assert after.health.is_ready
    assert after.metrics_registry.get_sample_value("srr_training_last_success_timestamp_seconds") == 0


def test_a_training_without_networks_loads_neither_pytorch_nor_what_else_takes_seconds() -> None:
    code = """if True:
        import sys
        import numpy as np
        import srr_stream.trainer
        from models.presets import PRESETS
        from models.training import train
        from srr_stream.threads import limit_threads
        limit_threads(1)
        rng = np.random.default_rng(0)
        train({"x": rng.normal(size=500), "y": rng.normal(size=500)}, PRESETS["default"], seed=0)
        heavy = {"torch", "sklearn", "scipy.stats", "pandas"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("order", ["before", "after"])
def test_pytorch_keeps_to_the_threads_it_is_given_whenever_it_is_loaded(order: str) -> None:
    lines = ["import torch", "limit_threads(1)"]
    code = "\n".join(
        [
            "from srr_stream.threads import limit_threads",
            *(lines if order == "before" else reversed(lines)),
            "assert torch.get_num_threads() == 1, torch.get_num_threads()",
        ]
    )
    environment = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)
