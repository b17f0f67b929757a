"""A backtest is the production path over history: the same verdicts, no look-ahead, and labels that nobody learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from prometheus_client import CollectorRegistry

from consumers.delivery import AtLeastOnce
from consumers.logs import MemoryLog
from consumers.records import StoredRecord
from consumers.sinks.memory import MemorySink
from consumers.sinks.serialization import verdict_bodies
from consumers.sources.memory import MemorySource
from models.evaluation import precision_at
from srr_stream import assembly
from srr_stream import backtest as backtest_module
from srr_stream.backtest import Lag, Result, backtest
from srr_stream.backtest.figures import figures_of, flagged_records
from srr_stream.backtest.labels import ANOMALY, NORMAL, UNKNOWN, Meaning, labels_of_field, labels_of_file
from srr_stream.backtest.recording import Recording
from srr_stream.errors import NotEnoughRecords
from srr_stream.health import Health
from srr_stream.loading import check_settings
from srr_stream.metrics import ScorerMetrics
from srr_stream.pace import Pace
from srr_stream.registry import Registry
from srr_stream.scorer import Scorer
from srr_stream.settings import Settings
from srr_stream.triggers import DriftTrigger

GOAD = {"representation": "goad", "representation_options": {"n_transforms": 8, "n_steps": 30}}
BAD = b'{"duration_ms": "much"}'
FIELDS: list[dict[str, Any]] = [
    {"name": "duration_ms"},
    {"name": "bytes_sent"},
    {"name": "load", "required": False},
    {"name": "route", "kind": "categorical"},
]


def some_settings(folder: Path, **overrides: dict[str, Any]) -> Settings:
    content: dict[str, dict[str, Any]] = {
        "kafka": {"bootstrap_servers": "127.0.0.1:1"},  # nobody is there: a backtest of a file asks no broker
        "input": {"topics": ["events"], "start": "earliest"},
        "record": {"fields": FIELDS},
        "output": {"alerts_topic": "alerts", "dead_letter_topic": "dead"},
        "window": {"min_size": 300, "max_size": 1000},
        "training": {"representation": "identity", "every": None, "on_drift": False},
        "registry": {"url": str(folder), "keep": 100},
    }
    for section, values in overrides.items():
        content[section] = content.get(section, {}) | values
    return check_settings(content, use_environment=False)


def recording_of(values: list[bytes], *, ms_apart: int = 10) -> Recording:
    records = [StoredRecord("events", 0, i, 0, None, value) for i, value in enumerate(values)]
    return Recording("events", records, np.arange(len(values), dtype=np.int64) * ms_apart)


class Bodies:
    """A sink that keeps every verdict as the scores topic would have it."""

    def __init__(self) -> None:
        self.by_version: dict[int, list[bytes]] = {}
        self.all: list[bytes] = []

    def write(self, verdicts: Any) -> None:
        bodies = list(verdict_bodies(verdicts))
        self.by_version.setdefault(verdicts.version, []).extend(bodies)
        self.all += bodies

    def write_bad(self, bad: Any) -> None:
        pass

    def flush(self, while_waiting: Any = None) -> None:
        pass

    def close(self) -> None:
        pass


def test_the_verdicts_are_those_of_the_service_byte_for_byte(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    values = make_values(1200)
    values[700] = BAD
    settings, recording, bodies = (
        some_settings(tmp_path, training={"every_records": 400}),
        recording_of(values),
        Bodies(),
    )
    result = backtest(settings, recording, sink=bodies)
    assert [took.at for took in result.took] == [0, 700, 1100]
    live_model = assembly.make_live_model(settings, assembly.make_registry(settings))
    for version, said in bodies.by_version.items():
        log, sink = MemoryLog(), MemorySink()
        for record in recording.records:
            log.append(record.topic, record.value)
        source = MemorySource(log)
        live_model.current = live_model.load(version)
        scorer = Scorer(
            source,
            assembly.make_decoder(settings),
            live_model,
            AtLeastOnce(source, sink),
            pace=Pace(700),
            metrics=ScorerMetrics(CollectorRegistry()),
            health=Health(live_timeout_s=60),
        )
        while scorer.turn():
            pass
        every = {orjson.loads(body)["offset"]: body for each in sink.flushed for body in verdict_bodies(each)}
        assert said == [every[orjson.loads(body)["offset"]] for body in said]
    assert sum(map(len, bodies.by_version.values())) == 1199
    assert result.findings.bad[700][0] == "wrong_type"


def test_what_is_kept_of_a_verdict_belongs_to_its_record(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    values = make_values(900)
    for row in (0, 3, 4, 500):
        values[row] = BAD
    bodies = Bodies()
    result = backtest(some_settings(tmp_path), recording_of(values), sink=bodies)
    said = {body["offset"]: body for body in map(orjson.loads, bodies.all)}
    assert sorted(result.findings.bad) == [0, 3, 4, 500]
    assert np.flatnonzero(result.findings.is_scored).tolist() == sorted(said)
    for row, body in said.items():
        assert result.findings.severity[row] == body["severity"]
        assert result.findings.p_value[row] == body["p_value"]
        assert result.findings.score[row] == body["score"]
        assert result.findings.flagged[row] == body["flagged"]
        assert result.findings.version[row] == body["version"]
        reasons = [part.field for part in result.findings.reasons.get(row, ())]
        assert reasons == [part["field"] for part in body["reasons"]]


@pytest.mark.parametrize("until", [300, 733])
def test_nothing_after_a_record_changes_a_verdict_before_it(
    tmp_path: Path, make_values: Callable[..., list[bytes]], until: int
) -> None:
    values, others = make_values(900), make_values(900, seed=9, contamination=0.3)
    changed = [*values[:until], *others[until:]]
    found = [
        backtest(some_settings(tmp_path / str(i), training={"every_records": 250}), recording_of(each)).findings
        for i, each in enumerate((values, changed))
    ]
    before = slice(0, until)
    for name in ("score", "p_value", "severity", "flagged", "version"):
        mine, theirs = (getattr(each, name) for each in found)
        assert np.array_equal(mine[before], theirs[before], equal_nan=True), name
    assert not np.array_equal(found[0].score[until:], found[1].score[until:], equal_nan=True)


def test_labels_never_reach_a_model(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> None:
    values = [orjson.loads(value) for value in make_values(800)]
    rng = np.random.default_rng(0)
    runs = []
    for i in range(2):
        labelled = [orjson.dumps(value | {"label": int(rng.random() < 0.5)}) for value in values]
        settings, bodies = some_settings(tmp_path / str(i), training={"every_records": 300}), Bodies()
        backtest(settings, recording_of(labelled), sink=bodies)
        registry = Registry(settings.registry.url)
        files = [registry.manifest(version).files for version in registry.versions()]
        runs.append((bodies.all, files))
    assert runs[0] == runs[1]


def test_the_same_backtest_gives_the_same_figures(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> None:
    recording, documents = recording_of(make_values(900)), []
    for i in range(2):
        settings = some_settings(tmp_path / str(i), training={"every_records": 300, **GOAD})
        document = figures_of(backtest(settings, recording)).to_dict()
        documents.append({key: value for key, value in document.items() if not key.startswith("seconds")})
    assert documents[0] == documents[1]
    assert json.dumps(documents[0])


def test_what_waits_for_the_first_model_is_scored_by_it_and_the_configured_one_follows_at_once(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    result = backtest(some_settings(tmp_path, training=GOAD), recording_of(make_values(700)))
    assert [(took.at, took.version, took.representation) for took in result.took] == [
        (0, 1, "identity"),
        (300, 2, "goad"),
    ]
    assert result.n_waited == 300
    assert result.findings.version.tolist() == [1] * 300 + [2] * 400


def test_without_retraining_only_the_first_models_come(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> None:
    settings = some_settings(tmp_path, training={"every_records": 100, "every": "1s", "on_drift": True, **GOAD})
    result = backtest(settings, recording_of(make_values(1000)), is_retrained=False)
    assert [trained.version for trained in result.trained] == [1, 2]


def test_the_clock_goes_by_the_records(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> None:
    values = make_values(1300)
    settings = {"training": {"every": "1m"}}
    slow = backtest(some_settings(tmp_path / "slow", **settings), recording_of(values, ms_apart=100))
    quick = backtest(some_settings(tmp_path / "quick", **settings), recording_of(values, ms_apart=1))
    assert [trained.reason for trained in slow.trained] == ["cold start", "60 s since the last training"]
    assert [trained.reason for trained in quick.trained] == ["cold start"]


def test_one_record_with_a_wrong_time_does_not_move_the_clock(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    recording = recording_of(make_values(1000), ms_apart=1)
    recording.time_ms[400] += 10**12
    result = backtest(some_settings(tmp_path, training={"every": "1m"}), recording)
    assert len(result.trained) == 1


def test_drift_asks_for_a_training(
    tmp_path: Path, make_values: Callable[..., list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "make_drift_trigger", lambda settings: DriftTrigger(block_size=16))
    moved = [orjson.loads(value) for value in make_values(2000, seed=1)]
    for value in moved[1200:]:
        value["bytes_sent"] *= 20
    recording = recording_of([orjson.dumps(value) for value in moved], ms_apart=1000)
    result = backtest(some_settings(tmp_path, output={"n_reasons": 0}), recording)
    assert any(trained.reason.startswith("drift: ") and trained.at > 1200 for trained in result.trained)


@pytest.mark.parametrize(("lag", "at"), [(Lag(n_records=250), 550), (Lag(seconds=2.0), 500)])
def test_a_training_that_takes_its_time_leaves_the_old_model_at_work(
    tmp_path: Path, make_values: Callable[..., list[bytes]], lag: Lag, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backtest_module, "STEP", 50)
    result = backtest(
        some_settings(tmp_path, training=GOAD, gate={"mode": "off"}), recording_of(make_values(1200)), lag=lag
    )
    first, second = result.took
    assert first.at == 0
    assert result.n_waited == pytest.approx(at, abs=50)  # the first model takes its time, too
    assert second.at - result.n_waited == pytest.approx(at - 300, abs=50)


def test_too_few_records_say_how_many_there_must_be(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> None:
    with pytest.raises(NotEnoughRecords, match=r"no model came of 200 records: .*200 of 300 \(window.min_size\)"):
        backtest(some_settings(tmp_path), recording_of(make_values(200)))


def test_records_that_cannot_be_read_are_told_as_the_reason_for_no_model(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughRecords, match=r"only 0 of 400 .* are usable.*wrong_type 400"):
        backtest(some_settings(tmp_path), recording_of([BAD] * 400))


def test_a_few_bad_records_at_the_start_delay_the_first_model_and_do_not_prevent_it(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    recording = recording_of([BAD, *make_values(999)])
    supposed = Recording("events", recording.records, recording.time_ms, 100.0)
    result = backtest(some_settings(tmp_path / "supposed"), supposed)
    assert [trained.at for trained in result.trained] == [800]
    # By their own times the records are all there before the trainer, which failed, tries again.
    result = backtest(some_settings(tmp_path / "real"), recording)
    assert [trained.at for trained in result.trained] == [1000]
    assert int(result.findings.is_scored.sum()) == 999


def test_a_gate_that_lets_nothing_in_is_told_as_the_reason_for_no_model(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    settings = some_settings(tmp_path, gate={"max_excluded_ratio": 0.0001})
    with pytest.raises(NotEnoughRecords, match="first model was rejected by the gate: excluded_ratio"):
        backtest(settings, recording_of(make_values(400, contamination=0.1)))


def test_a_training_that_fails_later_is_noted_and_the_old_model_goes_on(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    values = [*make_values(400), *[BAD] * 1000, *make_values(300, seed=2)]
    result = backtest(some_settings(tmp_path, training={"every_records": 900}), recording_of(values))
    assert any("only 0 of 1,000 records" in note.text or "are usable" in note.text for note in result.notes)
    assert set(result.findings.version[1400:].tolist()) == {1}


def test_a_manual_gate_promotes_what_passes_and_no_broker_is_asked_for_labels(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    settings = some_settings(tmp_path, gate={"mode": "manual", "reference_version": 7}, labels={"topic": "labels"})
    result = backtest(settings, recording_of(make_values(400)))
    assert [trained.decision for trained in result.trained] == ["promoted"]


def test_a_model_that_flags_too_much_is_rolled_back_as_in_production(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    usual, strange = make_values(5200, contamination=0.0), make_values(300, seed=3, contamination=0.0)
    moved = [orjson.dumps(orjson.loads(v) | {"bytes_sent": orjson.loads(v)["bytes_sent"] * 50}) for v in strange]
    values = [*usual[:2700], *moved, *usual[2700:]]  # the training at 3,000 sees the strange ones alone
    settings = some_settings(
        tmp_path,
        window={"min_size": 300, "max_size": 300},
        training={"every_records": 2700},
        gate={"mode": "off", "max_flagged_factor": 2},
        output={"n_reasons": 0},
    )
    result = backtest(settings, recording_of(values))
    assert [took.version for took in result.took] == [1, 2, 1]
    assert any("version 2 flags" in note.text for note in result.notes)
    assert [each.version for each in figures_of(result).versions] == [1, 2]


def test_somebody_may_stop_it_and_gets_what_there_is(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> None:
    done: list[int] = []
    result = backtest(
        some_settings(tmp_path),
        recording_of(make_values(2000)),
        should_stop=lambda: bool(done) and done[-1] >= 800,
        on_progress=lambda n, doing: done.append(n),
    )
    assert 800 <= result.n_done < 2000
    assert figures_of(result).stopped_after == result.n_done
    assert int(result.findings.is_scored.sum()) == result.n_done


def test_somebody_may_stop_it_within_a_training(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> None:
    doing: list[str] = []
    result = backtest(
        some_settings(tmp_path, training=GOAD),
        recording_of(make_values(700)),
        should_stop=lambda: bool(doing) and "goad" in doing[-1],
        on_progress=lambda n, what: doing.append(what),
    )
    assert result.n_done == 300
    assert [took.version for took in result.took] == [1]


# --- figures


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, np.ndarray[Any, Any]]:
    """A backtest with labels: an anomaly has next to no bytes."""
    rng = np.random.default_rng(0)
    n = 1200
    duration = rng.lognormal(3.0, 0.4, n)
    is_anomaly = rng.random(n) < 0.05
    size = np.where(is_anomaly, rng.uniform(0, 20, n), duration * 20 * rng.lognormal(0.0, 0.1, n))
    values = [
        json.dumps({"duration_ms": d, "bytes_sent": s, "load": 0.5, "route": "/"}).encode()
        for d, s in zip(duration.tolist(), size.tolist(), strict=True)
    ]
    folder = tmp_path_factory.mktemp("registry")
    result = backtest(some_settings(folder, training={"every_records": 500}), recording_of(values, ms_apart=60_000))
    labels = is_anomaly.astype(np.int8)
    labels[::10] = UNKNOWN
    return result, labels


def test_flags_and_ranking_are_measured_against_the_labels_that_there_are(
    labelled: tuple[Result, np.ndarray[Any, Any]],
) -> None:
    result, labels = labelled
    figures = figures_of(result, labels)
    quality, known = figures.quality, labels != UNKNOWN
    assert quality is not None
    assert quality.n_labelled == int(known.sum())
    assert quality.n_anomalies == int((labels == ANOMALY).sum())
    assert quality.auc is not None
    assert quality.auc > 0.95
    flagged = result.findings.flagged & known
    assert quality.recall == pytest.approx((flagged & (labels == ANOMALY)).sum() / (labels == ANOMALY).sum())
    assert set(quality.precision_at) == {10, 100, int(flagged.sum())}
    assert quality.precision_at[10] == precision_at(labels[known] == ANOMALY, result.findings.severity[known], 10)
    assert sum(each.scored for each in figures.versions) == figures.scored == 1200
    assert all(each.quality is not None for each in figures.versions)


def test_other_false_alarm_rates_flag_what_the_models_would_with_them(
    labelled: tuple[Result, np.ndarray[Any, Any]],
) -> None:
    result, labels = labelled
    figures = figures_of(result, labels, rates=(0.001, 0.02))
    assert [each.false_alarm_rate for each in figures.at_rates] == [0.001, 0.005, 0.02]
    n_flagged = [each.flagged for each in figures.at_rates]
    assert n_flagged == sorted(n_flagged)
    assert n_flagged[1] == figures.flagged
    assert figures.at_rates[1].per_day == pytest.approx(figures.flagged / (1199 / 1440))
    recalls = [each.recall for each in figures.at_rates]
    assert recalls == sorted(recalls, key=lambda recall: recall or 0.0)


def test_the_first_and_the_most_severe_flagged_records_are_told_in_words(
    labelled: tuple[Result, np.ndarray[Any, Any]],
) -> None:
    result, labels = labelled
    first = flagged_records(result, labels, most=5)
    assert [each.row for each in first] == result.flagged_rows[:5]
    assert " was expected" in first[0].why
    assert first[0].why.startswith(first[0].reasons[0]["field"])
    severe = flagged_records(result, labels, most=5, by_severity=True)
    assert [each.severity for each in severe] == sorted(result.findings.severity)[::-1][:5]
    assert {each.label for each in flagged_records(result, labels)} <= {"anomaly", "normal", None}


def test_the_fields_behind_the_flags_are_counted(labelled: tuple[Result, np.ndarray[Any, Any]]) -> None:
    figures = figures_of(labelled[0])
    assert figures.fields[0].field in ("bytes_sent", "duration_ms")
    assert sum(each.first for each in figures.fields) == figures.flagged
    assert figures.quality is None


def test_without_times_nothing_is_said_of_a_day(labelled: tuple[Result, np.ndarray[Any, Any]]) -> None:
    result = labelled[0]
    supposed = Recording("events", result.recording.records, result.recording.time_ms, 100.0)
    figures = figures_of(Result(**{**vars(result), "recording": supposed}))
    assert all(each.per_day is None for each in figures.at_rates)


# --- labels


def labelled_records(*values: Any) -> list[StoredRecord]:
    return [
        StoredRecord("t", 0, i, 0, f"k{i}".encode(), orjson.dumps({"x": 1, "l": {"is": value}}))
        for i, value in enumerate(values)
    ]


SCHEMA = assembly.record_schema(some_settings(Path("unused")).record)


def test_the_usual_words_for_anomaly_and_normal_are_understood() -> None:
    records = labelled_records(1, 0, True, False, "Anomaly", "normal", "1", "0", 1.0, None, "", "unsure")
    expected = [ANOMALY, NORMAL] * 4 + [ANOMALY, UNKNOWN, UNKNOWN, UNKNOWN]
    assert labels_of_field(records, "l.is", SCHEMA).tolist() == expected


def test_other_words_are_named_on_one_side_and_all_else_is_the_other() -> None:
    records = labelled_records("dos", "normal.", "probe", None)
    by_anomaly = labels_of_field(records, "l.is", SCHEMA, Meaning(anomalous=("dos",)))
    by_normal = labels_of_field(records, "l.is", SCHEMA, Meaning(normal=("Normal.",)))
    assert by_anomaly.tolist() == [ANOMALY, NORMAL, NORMAL, UNKNOWN]
    assert by_normal.tolist() == [ANOMALY, NORMAL, ANOMALY, UNKNOWN]


@pytest.mark.parametrize(
    ("name", "meaning", "problem"),
    [
        ("bytes_sent", {}, "the models learn from this field"),
        ("nowhere", {}, "no record has this field; there are x, l"),
        ("l.is", {}, "'dos', 'smurf' are no labels; allowed: 0, 1"),
        ("l.is", {"normal": ("fine",)}, "no value is 'fine'; there are 'dos', 'smurf'"),
    ],
)
def test_labels_that_cannot_be_understood_say_why(name: str, meaning: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        labels_of_field(labelled_records("dos", "smurf"), name, SCHEMA, Meaning(**meaning))


def test_both_sides_cannot_be_named_at_once() -> None:
    with pytest.raises(ValueError, match="one of them"):
        Meaning(("a",), ("b",))


@pytest.mark.parametrize("name", ["labels.csv", "labels.ndjson"])
def test_a_file_of_labels_names_records_by_id_or_key(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = [{"id": "t-0-1", "label": "anomaly"}, {"id": "k2", "label": "normal"}, {"id": "t-0-99", "label": "anomaly"}]
    if name.endswith("csv"):
        path.write_text("id,label\n" + "".join(f"{row['id']},{row['label']}\n" for row in rows))
    else:
        path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    assert labels_of_file(path, labelled_records(1, 1, 1)).tolist() == [UNKNOWN, ANOMALY, NORMAL]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "has no labels"),
        ("id,label\n", "has no labels"),
        ("name,label\na,1\n", "entry 1 has no id or no label"),
        ("id,label\nt-0-77,1\n", "none of its 1 ids is one of these records, such as t-0-0"),
    ],
)
def test_a_file_of_labels_that_says_nothing_of_these_records_says_why(
    tmp_path: Path, content: str, problem: str
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=problem):
        labels_of_file(path, labelled_records(1))


def test_the_settings_of_a_backtest_differ_in_what_needs_a_broker_or_a_person_only(tmp_path: Path) -> None:
    settings = some_settings(tmp_path, labels={"topic": "labels"}, gate={"mode": "manual"})
    used = backtest_module._as_backtested(settings, is_retrained=True)
    changed = {
        (section, key)
        for section, values in settings.model_dump().items()
        for key, value in values.items()
        if used.model_dump()[section][key] != value
    }
    assert changed == {("labels", "topic"), ("gate", "mode")}
    assert asdict(Lag()) == {"seconds": 0.0, "n_records": 0}
