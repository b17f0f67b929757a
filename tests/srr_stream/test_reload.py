"""Settings changed while the service runs: what may change takes effect, all else leaves everything as it was."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from consumers.errors import BrokerUnavailable, NotAuthorized
from srr_stream.errors import SettingsError
from srr_stream.loading import load_settings
from srr_stream.reload import RELOADABLE, Reloader, Reloads, differing_keys, read_again
from srr_stream.service import Service
from srr_stream.settings import Settings
from tests.srr_stream.conftest import make_flood

Stream = Any
ROOT = Path(__file__).parents[2]
SRR_STREAM = [sys.executable, "-c", "from srr_stream.cli import main; main()"]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# --- when


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text("a: 1")
    return path


def test_who_asks_once_is_answered_once_and_so_is_who_asks_twice(file: Path) -> None:
    reloads = Reloads(file)
    assert not reloads.is_due()
    reloads.ask()
    assert reloads.is_due()
    assert not reloads.is_due()
    reloads.ask(signal.SIGHUP, None)
    reloads.ask(signal.SIGHUP, None)
    assert reloads.is_due()
    assert not reloads.is_due()


def looked(reloads: Reloads, clock: Clock, n: int = 4) -> list[bool]:
    """Return what came of so many looks, a second from each other."""
    found = []
    for _ in range(n):
        clock.now += 1.0
        found.append(reloads.is_due())
    return found


def test_a_file_that_is_not_watched_may_change(file: Path) -> None:
    clock = Clock()
    reloads = Reloads(file, clock=clock)
    file.write_text("a: 2")
    assert looked(reloads, clock) == [False] * 4


def replace_by_rename(file: Path) -> None:
    other = file.with_suffix(".new")
    other.write_text("a: 2")
    other.replace(file)


def replace_behind_a_link(file: Path) -> None:
    """As Kubernetes changes a ConfigMap that is mounted."""
    other = file.with_suffix(".2")
    other.write_text("a: 2")
    link = file.with_suffix(".link")
    link.symlink_to(other)
    link.replace(file)


@pytest.mark.parametrize(
    "change",
    [lambda file: file.write_text("a: 2"), replace_by_rename, replace_behind_a_link, lambda file: file.unlink()],
)
def test_a_watched_file_that_changed_is_due_once_it_has_settled(file: Path, change: Callable[[Path], Any]) -> None:
    clock = Clock()
    reloads = Reloads(file, is_watched=True, clock=clock)
    assert looked(reloads, clock, 2) == [False, False]
    change(file)
    assert looked(reloads, clock) == [False, True, False, False]


def test_a_watched_file_that_is_gone_and_comes_back_changed_is_due_again(file: Path) -> None:
    clock = Clock()
    reloads = Reloads(file, is_watched=True, clock=clock)
    file.unlink()
    assert looked(reloads, clock, 3) == [False, True, False]
    file.write_text("a: 3")
    assert looked(reloads, clock, 3) == [False, True, False]


def test_a_watched_file_that_is_touched_or_put_back_is_not_due(file: Path) -> None:
    clock = Clock()
    reloads = Reloads(file, is_watched=True, clock=clock)
    os.utime(file, (1, 1))
    assert looked(reloads, clock) == [False] * 4
    file.write_text("a: 1")
    assert looked(reloads, clock) == [False] * 4


def test_a_watched_file_that_is_still_being_written_is_waited_for(file: Path) -> None:
    clock = Clock()
    reloads = Reloads(file, is_watched=True, clock=clock)
    for n in range(5):
        file.write_text("a: 1\n" + "b: 2\n" * n)
        assert looked(reloads, clock, 1) == [False]
    assert looked(reloads, clock, 2) == [True, False]


def test_a_watched_file_is_looked_at_once_a_second(file: Path) -> None:
    clock = Clock()
    reloads = Reloads(file, is_watched=True, clock=clock)
    file.write_text("a: 2")
    n_looks = 0
    while not reloads.is_due():
        clock.now += 0.1
        n_looks += 1
    assert clock.now == pytest.approx(2.0, abs=0.25)
    assert n_looks > 15


# --- what


def test_every_reloadable_key_is_a_setting_and_is_in_the_documentation_as_such() -> None:
    known = {f"{section}.{key}" for section, info in Settings.model_fields.items() for key in keys_of(info.annotation)}
    assert set(RELOADABLE) <= known
    page = (ROOT / "docs" / "reload.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = {name.strip().strip("`") for row in rows for name in row.split(",")}
    assert named == set(RELOADABLE)


def keys_of(section: Any) -> list[str]:
    return list(section.model_fields)


def test_keys_that_differ_are_named_and_never_their_values(stream: Stream) -> None:
    one = load_settings(stream.write_settings(api={"token": "hunter2"}))
    other = load_settings(stream.write_settings(api={"token": "hunter3"}, threshold={"false_alarm_rate": 0.1}))
    assert differing_keys(one, one) == []
    assert differing_keys(one, other) == ["threshold.false_alarm_rate", "api.token"]


def test_a_key_that_needs_a_restart_refuses_the_whole_file_and_names_all_of_them(stream: Stream) -> None:
    in_use = load_settings(stream.write_settings())
    path = stream.write_settings(
        threshold={"false_alarm_rate": 0.1}, window={"min_size": 500}, api={"enabled": False, "port": 1234}
    )
    with pytest.raises(SettingsError) as caught:
        read_again(path, in_use)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["window.min_size", "api.port"]
    assert all("restart" in problem for problem in caught.value.problems)


BROKEN: Mapping[str, Callable[[Path], Any]] = {
    "is not YAML": lambda path: path.write_text("a: [1"),
    "unknown key": lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"treshold": {}})),
    "cannot be read": lambda path: path.unlink(),
    "must be a mapping": lambda path: path.write_text("[]"),
    "allowed: less than http.live_timeout": lambda path: path.write_text(
        json.dumps(json.loads(path.read_text()) | {"http": {"live_timeout": "5s"}})
    ),
}


class Bench:
    """A file of settings that are in use, and notes of what is applied."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.path: Path = stream.write_settings()
        self.reloads = Reloads(self.path)
        self.applied: list[tuple[Settings, frozenset[str]]] = []
        self.error: Exception | None = None
        registry = CollectorRegistry()
        self.is_good, self.read_at = Gauge("is_good", "", registry=registry), Gauge("read_at", "", registry=registry)
        self.is_good.set(1)
        self.registry = registry
        self.reloader = Reloader(
            self.reloads, load_settings(self.path), apply=self._apply, is_good=self.is_good, read_at=self.read_at
        )

    def _apply(self, settings: Settings, changed: frozenset[str]) -> None:
        if self.error is not None:
            raise self.error
        self.applied.append((settings, changed))

    def figures(self) -> tuple[float | None, float | None]:
        return self.registry.get_sample_value("is_good"), self.registry.get_sample_value("read_at")

    def reload(self, **overrides: Mapping[str, Any]) -> None:
        self.stream.write_settings(**overrides)
        self.reloads.ask()
        self.reloader.look()


@pytest.fixture
def bench(stream: Stream) -> Bench:
    return Bench(stream)


def test_unasked_nothing_is_read(bench: Bench) -> None:
    bench.path.unlink()
    bench.reloader.look()
    assert bench.figures() == (1.0, 0.0)


def test_what_changed_is_applied_and_the_gauges_say_when(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before = time.time()
    bench.reload(threshold={"false_alarm_rate": 0.1}, log={"format": "json"})
    ((settings, changed),) = bench.applied
    assert settings.threshold.false_alarm_rate == 0.1
    assert changed == {"threshold.false_alarm_rate", "log.format"}
    is_good, read_at = bench.figures()
    assert is_good == 1.0
    assert before <= (read_at or 0.0) <= time.time()
    assert caplog.messages == ["settings reloaded; changed: log.format, threshold.false_alarm_rate"]
    bench.reload()
    assert bench.applied[-1][1] == {"threshold.false_alarm_rate", "log.format"}, "compared with what is in use now"


def test_an_unchanged_file_is_a_success(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.reload()
    assert [changed for _, changed in bench.applied] == [frozenset()]
    assert bench.figures()[0] == 1.0
    assert caplog.messages == ["settings reloaded; nothing changed"]


@pytest.mark.parametrize("why", BROKEN)
def test_a_file_that_is_wrong_changes_nothing_flips_the_gauge_and_says_why(
    bench: Bench, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    BROKEN[why](bench.path)
    bench.reloads.ask()
    bench.reloader.look()
    assert bench.applied == []
    assert bench.figures() == (0.0, 0.0)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "those in use stay" in record.getMessage()
    assert why in record.getMessage()
    bench.reload(threshold={"false_alarm_rate": 0.1})
    assert bench.figures()[0] == 1.0
    assert len(bench.applied) == 1


def test_all_that_is_wrong_is_told_in_one_line_without_a_secret(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.reload(
        threshold={"false_alarm_rate": 7}, training={"every": "soon"}, kafka={"sasl_plain_password": ["hunter2"]}
    )
    (record,) = caplog.records
    for problem in ("threshold.false_alarm_rate: is 7", "training.every: is 'soon'", "kafka.sasl_plain_password"):
        assert problem in record.getMessage()
    assert len(record.problems) == 3  # type: ignore[attr-defined]  # what was said beside the sentence
    assert "hunter2" not in repr(record.__dict__)


@pytest.mark.parametrize(
    "error", [NotAuthorized("the brokers miss a right"), BrokerUnavailable("no answer"), OSError("no such file")]
)
def test_an_output_that_cannot_be_written_to_changes_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    bench.error = error
    bench.reload(output={"alerts_topic": "elsewhere"})
    assert bench.figures() == (0.0, 0.0)
    assert str(error) in caplog.text
    bench.error = None
    bench.reloads.ask()
    bench.reloader.look()
    assert [changed for _, changed in bench.applied] == [frozenset({"output.alerts_topic"})]
    assert bench.figures()[0] == 1.0


# --- through the service


class Running:
    """A service whose settings file may change."""

    def __init__(
        self, stream: Stream, ask: Any, wait_until: Callable[..., Any], **overrides: Mapping[str, Any]
    ) -> None:
        self.stream, self._ask, self._wait_until = stream, ask, wait_until
        self.overrides: dict[str, dict[str, Any]] = {key: dict(value) for key, value in overrides.items()}
        self.path: Path = stream.write_settings(**self.overrides)
        self.reloads = Reloads(self.path)
        self.service = Service(load_settings(self.path), reloads=self.reloads)

    def figure(self, name: str) -> float:
        return self.service.metrics_registry.get_sample_value(name) or 0.0

    def reload(self, *, is_good: bool = True, **overrides: Mapping[str, Any]) -> None:
        """Change the file and wait until it was looked at."""
        content = {key: self.overrides.get(key, {}) | dict(value) for key, value in overrides.items()}
        self.stream.write_settings(**self.overrides | content)
        before = self.figure("srr_config_last_reload_success_timestamp_seconds")
        self.reloads.ask()
        if is_good:
            self.overrides |= content
            name = "srr_config_last_reload_success_timestamp_seconds"
            self._wait_until(lambda: self.figure(name) > before, what="the reload")
            assert self.figure("srr_config_last_reload_successful") == 1.0
        else:
            self._wait_until(lambda: self.figure("srr_config_last_reload_successful") == 0.0, what="the refusal")


@pytest.fixture
def run(stream: Stream, running: Any, ask: Any, wait_until: Callable[..., Any]) -> Callable[..., Any]:
    @contextmanager
    def start(on: Stream = stream, **overrides: Mapping[str, Any]) -> Iterator[Running]:
        made = Running(on, ask, wait_until, **overrides)
        with running(made.service):
            yield made

    return start


def test_the_rate_and_the_clock_of_trainings_change_without_a_restart_of_anything(
    run: Callable[..., Any], stream: Stream, make_values: Callable[..., list[bytes]], wait_until: Callable[..., Any]
) -> None:
    stream.produce(make_values(400))
    with run(gate={"mode": "off"}) as made:
        wait_until(lambda: stream.count() == 400, what="the first verdicts")
        trainer = made.service.trainer
        assert trainer is not None
        pid = trainer.pid
        made.reload(threshold={"false_alarm_rate": 0.6})
        assert made.figure("srr_false_alarm_rate") == 0.6
        stream.produce(make_values(200, seed=1))
        wait_until(lambda: stream.count() == 600, what="verdicts by another rate")
        assert made.service.registry.versions() == (1,), "nothing was trained for it"
        made.reload(training={"every": "1s"})
        wait_until(lambda: len(made.service.registry.versions()) > 1, what="a training by the new clock")
        assert trainer.pid == pid
        manifest = made.service.registry.manifest(2)
        assert made.service.registry.load(2)[0].false_alarm_rate == 0.6
    assert "s since the last training" in manifest.reason
    verdicts = stream.verdicts()
    by_first = [v for v in verdicts if v["version"] == 1]
    assert len(by_first) == 600
    for verdict, rate in zip(by_first, [0.005] * 400 + [0.6] * 200, strict=True):
        assert verdict["flagged"] == (verdict["p_value"] <= rate)
    assert sum(v["flagged"] for v in by_first[:400]) < 100 < sum(v["flagged"] for v in by_first[400:])


def produced(stream: Stream, values: list[bytes], started: threading.Event) -> threading.Thread:
    """Append records bit by bit, in a thread."""

    def produce() -> None:
        for start in range(0, len(values), 50):
            stream.produce(values[start : start + 50])
            started.set()

    thread = threading.Thread(target=produce)
    thread.start()
    return thread


def change_of_outputs(
    run: Callable[..., Any],
    stream: Stream,
    broker: Any,
    make_values: Callable[..., list[bytes]],
    wait_until: Callable[..., Any],
    **overrides: Mapping[str, Any],
) -> None:
    """Change all outputs amid a stream, after two attempts that are refused; nothing is lost, nothing doubled."""
    others = {
        "scores_topic": f"{stream.topic}-scores-2",
        "alerts_topic": f"{stream.topic}-alerts-2",
        "dead_letter_topic": f"{stream.topic}-dead-2",
        "include_record": True,
        "n_reasons": 1,
    }
    broker.create_topics({others[key]: 1 for key in ("scores_topic", "alerts_topic", "dead_letter_topic")})
    stream.produce(make_values(400))
    overrides = {"input": {"session_timeout": "20s", "max_batch": 100}, **overrides}
    with run(stream, **overrides) as made:
        wait_until(lambda: stream.count() >= 400, what="the first verdicts")
        sending = threading.Event()
        thread = produced(stream, [*make_values(1500, seed=1), b"{torn"], sending)
        assert sending.wait(30)
        made.reload(is_good=False, output={"alerts_topic": "never-made"}, threshold={"false_alarm_rate": 0.6})
        assert made.figure("srr_false_alarm_rate") == 0.005, "all or nothing"
        made.reload(output=others)
        thread.join()
        first = stream.count()
        assert first < 1900, "the change came too late to prove anything"
        stream.produce([*make_values(95, seed=2), *make_flood(5), b"{torn"])
        last = f"{stream.topic}-scores-2"
        wait_until(lambda: stream.count() + len(stream.read(last)) >= 2000, what="all verdicts")
        wait_until(lambda: made.service.health.is_ready, what="readiness")
        reconnects = made.service.metrics.reconnects.collect()[0].samples
        assert sum(s.value for s in reconnects if s.name.endswith("_total")) == 0.0, "the source was kept"
    former = stream.verdicts()
    later = [json.loads(record.value) for record in stream.read(last)]
    ids = Counter(v["id"] for v in former + later)
    records = stream.read(stream.topic)
    torn = {f"{r.topic}-{r.partition}-{r.offset}" for r in records if r.value == b"{torn"}
    assert set(ids) == {f"{r.topic}-{r.partition}-{r.offset}" for r in records} - torn
    assert set(ids.values()) == {1}
    assert not any("record" in v for v in former)
    assert all("record" in v for v in later)
    for verdicts, topic in ((former, stream.alerts_topic), (later, others["alerts_topic"])):
        alerts = [json.loads(record.value)["id"] for record in stream.read(topic)]
        assert sorted(alerts) == sorted(v["id"] for v in verdicts if v["flagged"])
    dead = stream.read(stream.dead_letter_topic) + stream.read(others["dead_letter_topic"])
    assert [record.value for record in dead] == [b"{torn"] * 2
    assert {len(v["reasons"]) for v in later if v["flagged"]} == {1}


def test_outputs_change_amid_a_stream_and_nothing_is_lost_or_doubled(
    run: Callable[..., Any],
    stream: Stream,
    embedded_broker: Any,
    make_values: Callable[..., list[bytes]],
    wait_until: Callable[..., Any],
) -> None:
    change_of_outputs(run, stream, embedded_broker, make_values, wait_until)


@pytest.mark.kafka
@pytest.mark.parametrize("mode", ["at_least_once", "exactly_once"])
def test_outputs_change_on_a_real_kafka_in_both_modes(
    run: Callable[..., Any],
    make_stream: Any,
    apache_kafka: Any,
    make_values: Callable[..., list[bytes]],
    wait_until: Callable[..., Any],
    mode: str,
) -> None:
    stream = make_stream(apache_kafka)
    change_of_outputs(run, stream, apache_kafka, make_values, wait_until, delivery={"mode": mode})


def test_outputs_are_tried_while_there_is_no_connection_and_are_those_of_the_next_one(
    run: Callable[..., Any], stream: Stream, wait_until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from srr_stream import assembly

    made_for: list[str | None] = []
    make_sink, is_away = assembly.make_sink, True

    def fail_for_a_while(settings: Settings, **options: Any) -> Any:
        made_for.append(settings.output.alerts_topic)
        if is_away:
            raise BrokerUnavailable("no answer")
        return make_sink(settings, **options)

    monkeypatch.setattr(assembly, "make_sink", fail_for_a_while)
    with run() as made:
        wait_until(lambda: "no answer" in made.service.health.reason, what="the outage")
        made.reload(is_good=False, output={"alerts_topic": None})
        is_away = False
        made.reload(output={"alerts_topic": None})
        wait_until(lambda: "holding" in made.service.health.reason, what="a connection")
    assert made_for[0] == stream.alerts_topic
    assert made_for[-1] is None


def test_the_watch_over_swaps_comes_and_goes_and_changes_its_bounds(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Service(load_settings(stream.write_settings(gate={"auto_rollback": False})))
    settings = {
        name: load_settings(stream.write_settings(gate=gate))
        for name, gate in {"on": {}, "stricter": {"max_flagged_ratio": 0.1}, "off": {"auto_rollback": False}}.items()
    }
    n_before = len(made._observers)
    assert not made.live_model.keeps_previous
    made._adopt(settings["on"], frozenset({"gate.auto_rollback"}))
    watch = made._observers[-1]
    assert len(made._observers) == n_before + 1
    assert made.live_model.keeps_previous
    made._adopt(settings["stricter"], frozenset({"gate.max_flagged_ratio"}))
    assert made._observers[-1] is watch, "what it has counted stays"
    assert watch._max_flagged_ratio == 0.1  # type: ignore[attr-defined]  # it is a SwapWatch
    made._adopt(settings["off"], frozenset({"gate.auto_rollback"}))
    assert len(made._observers) == n_before
    assert not made.live_model.keeps_previous


# --- real processes


def start(command: list[str], path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SRR_STREAM, *command, "-c", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_process_reloads_upon_sighup_and_when_it_watches_and_outlives_a_broken_file(
    stream: Stream, ask: Any, wait_until: Callable[..., Any], free_port: int
) -> None:
    def write(rate: float, **overrides: Mapping[str, Any]) -> None:
        """As an editor does: another file, renamed."""
        content = stream.content(http={"scorer_port": free_port}, threshold={"false_alarm_rate": rate}, **overrides)
        other = stream.folder / "settings.yaml~"
        other.write_text(json.dumps(content))
        other.replace(stream.folder / "settings.yaml")

    def told(line: str) -> Callable[[], bool]:
        return lambda: f"\n{line}\n" in ask(free_port, "/metrics")[1]

    write(0.005)
    process = start(["run", "--watch"], stream.folder / "settings.yaml")
    try:
        wait_until(told("srr_false_alarm_rate 0.005"), what="the scorer")
        write(0.02)
        wait_until(told("srr_false_alarm_rate 0.02"), what="what the watched file says")
        write(0.03, window={"min_size": 500})
        wait_until(told("srr_config_last_reload_successful 0.0"), what="the refusal")
        assert told("srr_false_alarm_rate 0.02")()
        write(0.04, log={"repeat_limit": 9})
        process.send_signal(signal.SIGHUP)  # at once, not when the file has settled
        wait_until(told("srr_false_alarm_rate 0.04"), what="what it says upon the signal")
        assert told("srr_config_last_reload_successful 1.0")()
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, log
    lines = [json.loads(line) for line in log.splitlines()]
    assert "scorer" in {line["role"] for line in lines}
    refused = next(line for line in lines if line["event"].startswith("settings not reloaded"))
    assert refused["level"] == "error"
    assert refused["problems"] == [
        "window.min_size: differs from what is in use, and needs a restart; put it back, or restart"
    ]


@pytest.mark.operate
def test_a_trainer_by_itself_reloads_upon_sighup(
    stream: Stream, ask: Any, make_values: Callable[..., list[bytes]], wait_until: Callable[..., Any], free_port: int
) -> None:
    stream.produce(make_values(400))
    http = {"trainer_port": free_port}
    process = start(["train"], stream.write_settings(http=http, gate={"mode": "off"}))
    versions = stream.folder / "registry" / "versions"
    try:
        wait_until(lambda: (versions / "1" / "manifest.json").exists(), what="the first model")
        stream.write_settings(http=http, gate={"mode": "off"}, training={"every": "1s"})
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: (versions / "3" / "manifest.json").exists(), what="models by the clock")
        text = ask(free_port, "/metrics")[1]
        assert "srr_config_last_reload_successful 1.0" in text
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, log
    lines = [json.loads(line) for line in log.splitlines()]
    assert {line["role"] for line in lines} == {"trainer"}
    runs = [line["run"] for line in lines if line["event"].startswith("training: ")]
    assert len(runs) == len(set(runs)) >= 3
    manifest = json.loads((versions / "3" / "manifest.json").read_text())
    assert manifest["training"]["run"] == runs[2]


# --- the API


def test_the_api_goes_by_another_rate_and_follows_another_topic(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    from srr_stream import api_process

    followed: list[str | None] = []
    rates: list[float] = []

    class Tail:
        problem = None

        def start(self) -> None:
            pass

        def stop(self) -> None:
            followed.append(None)

    def tail_of(settings: Settings, on_records: Any) -> Any:
        followed.append(settings.output.alerts_topic)
        return Tail()

    monkeypatch.setattr(api_process, "_tail_of_flagged", tail_of)
    settings = load_settings(stream.write_settings())
    asked = SimpleNamespace(set_false_alarm_rate=rates.append)
    records = api_process._Following(lambda on_records: tail_of(settings, on_records))  # type: ignore[arg-type]
    records.again.set()
    parts = api_process._Parts(asked, asked, records, stream.alerts_topic)  # type: ignore[arg-type]
    parts.look(None)
    parts.look(load_settings(stream.write_settings(threshold={"false_alarm_rate": 0.1})))
    assert followed == [stream.alerts_topic], "it is the same topic still"
    assert rates == [0.1, 0.1]
    parts.look(load_settings(stream.write_settings(output={"alerts_topic": "elsewhere"})))
    parts.look(None)
    assert followed == [stream.alerts_topic, None, "elsewhere"]
