"""The trainer on a log in memory: when it trains, what it publishes, and what it says when it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from consumers.decoding import JsonDecoder
from consumers.errors import BrokerUnavailable
from consumers.logs import MemoryLog
from consumers.records import Field, FieldKind, RecordSchema
from consumers.windows import WindowReader
from models.training import TrainingConfig
from srr_stream.errors import NotEnoughRecords
from srr_stream.health import Health
from srr_stream.metrics import TrainerMetrics
from srr_stream.registry import Registry
from srr_stream.settings import GateSettings
from srr_stream.trainer import Plan, Status, Trainer
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
            gate=options.pop("gate", GateSettings()),
            metrics=TrainerMetrics(self.metrics_registry),
            health=self.health,
            min_size=options.pop("min_size", 200),
            min_interval_s=60,
            every=ClockTrigger(every, clock=lambda: self.now) if every else None,
            count=CountTrigger(count) if count else None,
            on_status=self.statuses.append,
            clock=lambda: self.now,
        )

    def append(self, values: list[bytes]) -> None:
        for value in values:
            self.log.append("events", value)

    def runs(self, outcome: str) -> float:
        return self.metrics_registry.get_sample_value("srr_training_runs_total", {"outcome": outcome}) or 0.0


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
    bench = Bench(tmp_path, representation="goad", gate=GateSettings(mode="off"))
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
    bench = Bench(tmp_path, every_s=10, gate=GateSettings(max_flagged_ratio=0.0001))
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
    bench = Bench(tmp_path, gate=GateSettings(mode="off", max_flagged_ratio=0.0001))
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
        gate=GateSettings(),
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
