"""The scorer's turn over a log in memory: its order, what it holds back, what it commits."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from consumers.decoding import JsonDecoder
from consumers.delivery import AtLeastOnce
from consumers.errors import SinkError
from consumers.logs import MemoryLog
from consumers.records import BadRecord, Field, FieldKind, Position, RecordSchema, Verdicts, event_id
from consumers.sinks.memory import MemorySink
from consumers.sources.memory import MemorySource
from models.detector import Model
from models.persistence import model_to_parts
from models.training import TrainingConfig, train
from srr_stream.health import Health
from srr_stream.live_model import LiveModel, make_canary
from srr_stream.metrics import ScorerMetrics
from srr_stream.pace import Pace
from srr_stream.registry import Manifest, Registry
from srr_stream.scorer import Scorer
from srr_stream.triggers import DriftTrigger

SCHEMA = RecordSchema(
    (Field("duration_ms"), Field("bytes_sent"), Field("load", is_required=False), Field("route", FieldKind.CATEGORICAL))
)
BAD = [b"", b"{torn", b"[]", b'{"duration_ms": "1", "bytes_sent": 1, "route": "/"}', b'{"bytes_sent": 1}']


@pytest.fixture(scope="module")
def model() -> Model:
    rng = np.random.default_rng(0)
    duration = rng.lognormal(3.0, 0.4, 800)
    columns = {
        "duration_ms": duration,
        "bytes_sent": duration * 20,
        "load": rng.random(800),
        "route": np.array(rng.choice(["/", "/cart"], 800), dtype=object),
    }
    return train(columns, TrainingConfig(representation="identity"), seed=0).model


def publish(registry: Registry, model: Model) -> int:
    """Publish and promote a model; return its version."""
    description, weights = model_to_parts(model)
    manifest = Manifest(
        version=0,
        created_at="",
        reason="a test",
        schema=SCHEMA.to_dict(),
        schema_digest=SCHEMA.digest,
        window={"ranges": [], "n_records": 800, "n_bad": 0},
        training={},
        gate={},
        model=description,
        canary=make_canary(model),
    )
    version = registry.publish(manifest, weights).version
    registry.promote(version)
    return version


class Bench:
    """A scorer with all that it stands on."""

    def __init__(self, folder: Path, *, sink: MemorySink | None = None, max_batch: int = 50, **options: Any) -> None:
        self.log = MemoryLog()
        self.registry = Registry(str(folder))
        self.live_model = LiveModel(self.registry, schema_digest=SCHEMA.digest, false_alarm_rate=0.005)
        self.sink = sink if sink is not None else MemorySink()
        self.metrics_registry = CollectorRegistry()
        self.health = Health(live_timeout_s=60)
        self.source = MemorySource(self.log, max_batch=max_batch)
        self.scorer = Scorer(
            self.source,
            JsonDecoder(SCHEMA),
            self.live_model,
            AtLeastOnce(self.source, self.sink),
            pace=Pace(max_batch),
            metrics=ScorerMetrics(self.metrics_registry),
            health=self.health,
            **options,
        )

    def append(self, values: Sequence[bytes]) -> None:
        for i, value in enumerate(values):
            self.log.append("events", value, partition=i % 2)

    def until_idle(self) -> None:
        while self.scorer.turn():
            pass

    def committed(self) -> Mapping[Position, int]:
        return self.log.committed["group"]

    def answered(self) -> list[str]:
        good = [event_id(raw) for verdicts in self.sink.flushed for raw in verdicts.batch.raw]
        return good + [event_id(bad.raw) for bad in self.sink.flushed_bad]

    def figure(self, name: str, **labels: str) -> float:
        return self.metrics_registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def bench(tmp_path: Path, model: Model) -> Bench:
    made = Bench(tmp_path / "registry")
    publish(made.registry, model)
    made.live_model.refresh()
    return made


def test_without_a_model_nothing_is_read_committed_or_lost(
    tmp_path: Path, model: Model, make_values: Callable[..., list[bytes]]
) -> None:
    bench = Bench(tmp_path / "registry", why_no_model=lambda: "the reason that the service knows")
    bench.append(make_values(120))
    for _ in range(3):
        assert bench.scorer.turn() == 0
    assert bench.committed() == {}
    assert "the reason that the service knows" in bench.health.reason
    assert bench.figure("srr_partitions_paused") == 2
    publish(bench.registry, model)
    bench.live_model.refresh()
    bench.until_idle()
    assert len(bench.answered()) == 120
    assert bench.health.is_ready
    assert bench.figure("srr_partitions_paused") == 0


@given(st.lists(st.sampled_from(["good", *range(len(BAD))]), max_size=60), st.integers(1, 7))
@settings(max_examples=25, deadline=None)
def test_every_record_gets_one_answer_and_everything_answered_is_committed(
    tmp_path_factory: pytest.TempPathFactory, model: Model, stream: list[Any], max_batch: int
) -> None:
    good = b'{"duration_ms": 20, "bytes_sent": 400, "route": "/"}'
    bench = Bench(tmp_path_factory.mktemp("run") / "registry", max_batch=max_batch)
    publish(bench.registry, model)
    bench.live_model.refresh()
    bench.append([good if kind == "good" else BAD[kind] for kind in stream])
    bench.until_idle()
    ids = [f"{t}-{p}-{o}" for (t, p), end in bench.log.ends().items() for o in range(end)]
    assert sorted(bench.answered()) == sorted(ids)
    assert dict(bench.committed()) == dict(bench.log.ends())


class SinkThatFails(MemorySink):
    """Loses its broker at the n-th flush."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._left = at

    def flush(self, while_waiting: Any = None) -> None:
        self._left -= 1
        if self._left == 0:
            raise SinkError("no answer")
        super().flush()


@given(fails_at=st.integers(1, 6))
@settings(max_examples=6, deadline=None)
def test_the_committed_offset_never_passes_an_answer_that_is_not_durable(
    tmp_path_factory: pytest.TempPathFactory, model: Model, fails_at: int
) -> None:
    bench = Bench(tmp_path_factory.mktemp("run") / "registry", sink=SinkThatFails(fails_at), max_batch=10)
    publish(bench.registry, model)
    bench.live_model.refresh()
    bench.append([b'{"duration_ms": 20, "bytes_sent": 400, "route": "/"}', b"bad"] * 40)
    with pytest.raises(SinkError):
        bench.until_idle()
    durable = set(bench.answered())
    for (topic, partition), offset in bench.committed().items():
        assert {f"{topic}-{partition}-{o}" for o in range(offset)} <= durable


def test_a_swap_falls_between_two_batches(bench: Bench, model: Model, make_values: Callable[..., list[bytes]]) -> None:
    bench.append(make_values(100))
    bench.scorer.turn()
    publish(bench.registry, model)
    bench.live_model.refresh()
    bench.scorer.turn()
    assert [verdicts.version for verdicts in bench.sink.flushed] == [1, 2]


def test_flagged_rows_and_only_these_say_which_fields_caused_it(
    bench: Bench, make_values: Callable[..., list[bytes]]
) -> None:
    odd = b'{"duration_ms": 20, "bytes_sent": 900000, "load": 0.5, "route": "/"}'
    bench.append([*make_values(40, contamination=0.0), odd])
    bench.until_idle()
    flagged = {
        event_id(verdicts.batch.raw[row]): verdicts.contributions.get(row, ())
        for verdicts in bench.sink.flushed
        for row in np.flatnonzero(verdicts.flagged).tolist()
    }
    top = flagged["events-0-20"][0]
    assert top.field == "bytes_sent"
    assert top.observed == 900000
    assert all(row in np.flatnonzero(v.flagged) for v in bench.sink.flushed for row in v.contributions)


def test_what_was_done_is_counted_by_topic_verdict_and_reason(bench: Bench) -> None:
    bench.append([b'{"duration_ms": 20, "bytes_sent": 400, "load": 0.5, "route": "/"}'] * 8 + [b"bad", b"{}"])
    bench.until_idle()
    assert bench.figure("srr_records_consumed_total", topic="events") == 10
    scored = [
        bench.figure("srr_records_scored_total", topic="events", verdict=verdict) for verdict in ("normal", "flagged")
    ]
    assert sum(scored) == 8
    assert bench.figure("srr_records_dead_lettered_total", topic="events", reason="not_json") == 1
    assert bench.figure("srr_records_dead_lettered_total", topic="events", reason="missing_field") == 1
    assert bench.figure("srr_severity_count") == 8
    assert bench.figure("srr_event_latency_seconds_count") == 8
    assert bench.figure("srr_partition_lag_records", topic="events", partition="0") == 0


def test_drift_of_the_verdicts_asks_for_a_training_once(tmp_path: Path, model: Model) -> None:
    asked: list[str] = []
    bench = Bench(tmp_path / "registry", max_batch=500, drift=DriftTrigger(), on_drift=asked.append)
    publish(bench.registry, model)
    bench.live_model.refresh()
    rng = np.random.default_rng(0)

    def values(n: int, factor: float) -> list[bytes]:
        return [
            b'{"duration_ms": %f, "bytes_sent": %f, "load": 0.5, "route": "/"}' % (d, d * factor)
            for d in rng.lognormal(3.0, 0.4, n)
        ]

    bench.append(values(8000, 20.0))
    bench.until_idle()
    assert asked == []
    bench.append(values(8000, 60.0))
    bench.until_idle()
    assert len(asked) >= 1
    assert "drifted from" in asked[0]


def test_run_ends_when_told_and_is_not_ready_any_more(bench: Bench, make_values: Callable[..., list[bytes]]) -> None:
    bench.append(make_values(200))
    turns = iter([False, False, True])
    bench.scorer.run(lambda: next(turns))
    assert not bench.health.is_ready
    assert sum(bench.committed().values()) == 100


def test_a_batch_of_bad_records_only_is_answered_and_committed(bench: Bench) -> None:
    bench.append(BAD)
    bench.until_idle()
    assert len(bench.sink.flushed_bad) == len(BAD)
    assert all(isinstance(bad, BadRecord) for bad in bench.sink.flushed_bad)
    assert sum(len(verdicts) for verdicts in bench.sink.flushed if isinstance(verdicts, Verdicts)) == 0
    assert sum(bench.committed().values()) == len(BAD)


def test_a_stream_that_never_changes_is_learned_and_nothing_of_it_is_flagged(tmp_path: Path) -> None:
    columns = {
        "duration_ms": np.full(400, 1.5),
        "bytes_sent": np.full(400, 30.0),
        "load": np.full(400, np.nan),
        "route": np.array(["/"] * 400, dtype=object),
    }
    bench = Bench(tmp_path / "registry")
    publish(bench.registry, train(columns, TrainingConfig(representation="identity"), seed=0).model)
    bench.live_model.refresh()
    bench.append([b'{"duration_ms": 1.5, "bytes_sent": 30, "load": null, "route": "/"}'] * 400)
    bench.append([b'{"duration_ms": 2.5, "bytes_sent": 30, "load": null, "route": "/"}'])
    bench.until_idle()
    flagged = [
        event_id(verdicts.batch.raw[row])
        for verdicts in bench.sink.flushed
        for row in np.flatnonzero(verdicts.flagged).tolist()
    ]
    assert flagged == ["events-0-200"]


# Changed settings


def test_what_is_called_between_turns_finds_nothing_in_the_works(
    bench: Bench, make_values: Callable[..., list[bytes]]
) -> None:
    bench.append(make_values(200))
    seen: list[tuple[int, int]] = []
    bench.scorer.run(
        lambda: len(seen) > 5,
        between_turns=lambda: seen.append((sum(bench.log.committed["group"].values()), len(bench.answered()))),
    )
    assert all(committed == answered for committed, answered in seen)
    assert seen[-1] == (200, 200)


def test_another_delivery_and_number_of_reasons_hold_from_the_next_turn_on(
    bench: Bench, make_values: Callable[..., list[bytes]]
) -> None:
    wild = [b'{"duration_ms": 9e5, "bytes_sent": 1, "load": 0.5, "route": "/"}'] * 10
    bench.append(wild)
    bench.until_idle()
    other = MemorySink()
    bench.scorer.deliver_by(AtLeastOnce(bench.source, other))
    bench.scorer.adopt(n_reasons=1, drift=None)
    bench.append(wild)
    bench.until_idle()
    assert sum(map(len, bench.sink.flushed)) == sum(map(len, other.flushed)) == 10
    assert {len(reasons) for verdicts in bench.sink.flushed for reasons in verdicts.contributions.values()} == {4}
    assert {len(reasons) for verdicts in other.flushed for reasons in verdicts.contributions.values()} == {1}


def test_another_rate_is_no_drift_and_a_watch_that_is_left_out_shows_nothing(tmp_path: Path, model: Model) -> None:
    asked: list[str] = []
    bench = Bench(tmp_path / "registry", drift=DriftTrigger(block_size=8), on_drift=asked.append)
    publish(bench.registry, model)
    bench.live_model.refresh()
    rng = np.random.default_rng(1)
    rows = [(float(duration), float(rng.random())) for duration in rng.lognormal(3.0, 0.4, 2000)]
    values = [
        json.dumps({"duration_ms": duration, "bytes_sent": duration * 20, "load": load, "route": "/"}).encode()
        for duration, load in rows
    ]
    bench.append(values)
    bench.until_idle()
    assert bench.figure("srr_drift_statistic", detector="mean_severity") > 0
    asked.clear()
    before = bench.scorer.drift
    bench.live_model.set_false_alarm_rate(0.6)
    bench.append(values)
    bench.until_idle()
    first, last = bench.sink.flushed[0], bench.sink.flushed[-1]
    assert last.flagged.mean() > first.flagged.mean() + 0.2, "the rate did not take effect"
    assert asked == []
    assert bench.scorer.drift is before
    bench.scorer.adopt(n_reasons=5, drift=None)
    bench.append(values[:10])
    bench.until_idle()
    assert bench.figure("srr_drift_statistic", detector="mean_severity") == 0.0


def test_a_partition_tells_when_it_was_last_read_and_nothing_once_it_is_gone(
    tmp_path: Path, model: Model, make_values: Callable[..., list[bytes]]
) -> None:
    now = 1000.0
    bench = Bench(tmp_path / "registry", clock=lambda: now)
    publish(bench.registry, model)
    bench.live_model.refresh()
    bench.append(make_values(4))
    bench.until_idle()

    def last_read(partition: int) -> float:
        return bench.figure("srr_partition_last_read_timestamp_seconds", topic="events", partition=str(partition))

    assert (last_read(0), last_read(1)) == (1000.0, 1000.0)
    now = 1060.0
    bench.log.append("events", make_values(1)[0], partition=1)
    bench.until_idle()
    assert (last_read(0), last_read(1)) == (1000.0, 1060.0)
    bench.source.lag = lambda: {("events", 1): 0}  # type: ignore[method-assign]  # partition 0 was given away
    bench.scorer.turn()
    assert (last_read(0), last_read(1)) == (0.0, 1060.0)


def test_the_exemplars_of_severity_are_flagged_records(bench: Bench, make_values: Callable[..., list[bytes]]) -> None:
    from prometheus_client.openmetrics.exposition import generate_latest
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    bench.append([*make_values(20), b'{"duration_ms": 9e5, "bytes_sent": 1, "route": "/"}'])
    bench.until_idle()
    severities = {
        event_id(raw): severity
        for verdicts in bench.sink.flushed
        for raw, severity in zip(verdicts.batch.raw, verdicts.severity, strict=True)
        if severity > 1
    }
    families = text_string_to_metric_families(generate_latest(bench.metrics_registry).decode())
    (samples,) = [family.samples for family in families if family.name == "srr_severity"]
    exemplars = [sample.exemplar for sample in samples if sample.exemplar is not None]
    assert exemplars
    for exemplar in exemplars:
        assert severities[exemplar.labels["event_id"]] == pytest.approx(exemplar.value)


# The log


def test_a_busy_scorer_logs_nothing_for_a_batch(
    bench: Bench, make_values: Callable[..., list[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.append([*make_values(400), b"{torn"])
    bench.until_idle()
    assert len(bench.sink.flushed) > 5
    assert caplog.messages == ["ready: scoring 2 partitions with version 1"]
