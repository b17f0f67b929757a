"""The whole way on a real broker: cold start, swaps, killed processes, a stop, and what is wrong outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srr_stream.loading import check_settings
from srr_stream.service import Service

Stream = Any
SRR_STREAM = [sys.executable, "-c", "from srr_stream.cli import main; main()"]


def start(command: list[str], path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SRR_STREAM, *command, "-c", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ids_of(stream: Stream, n: int) -> set[str]:
    """The event ids of the records that were produced: offsets count up from 0 in each partition."""
    ids = {f"{r.topic}-{r.partition}-{r.offset}" for r in stream.read(stream.topic)}
    assert len(ids) == n
    return ids


def test_records_from_before_the_first_model_get_a_verdict_and_bad_ones_a_dead_letter(
    running: Any, stream: Stream, make_values: Callable[..., list[bytes]], wait_until: Callable[..., Any], ask: Any
) -> None:
    service = Service(check_settings(stream.content()))
    with running(service):
        stream.produce(make_values(200))
        wait_until(lambda: "200 of 300" in ask(service.port, "/readyz")[1], what="the reason for holding")
        status, text = ask(service.port, "/readyz")
        assert status == 503
        assert "holding" in text
        assert ask(service.port, "/livez")[0] == 200
        assert stream.verdicts() == []
        wild = [b'{"duration_ms": 9e5, "bytes_sent": 1, "load": 0.5, "route": "/"}'] * 4
        stream.produce([*make_values(396, seed=1), *wild, b"{torn", b'{"duration_ms": "12"}'])
        wait_until(lambda: stream.count() >= 600, what="600 verdicts")
        wait_until(lambda: ask(service.port, "/readyz")[0] == 200, what="readiness")
        verdicts = stream.verdicts()
    dead = stream.read(stream.dead_letter_topic)
    assert len({v["id"] for v in verdicts}) == len(verdicts) == 600
    assert {record.value for record in dead} == {b"{torn", b'{"duration_ms": "12"}'}
    assert {v["id"] for v in verdicts} < ids_of(stream, 602)
    assert len(wild) <= sum(v["flagged"] for v in verdicts) < 120


def test_a_trainer_killed_with_9_is_replaced_while_scoring_goes_on(
    running: Any, stream: Stream, make_values: Callable[..., list[bytes]], wait_until: Callable[..., Any]
) -> None:
    settings = check_settings(stream.content(training={"every": "1s"}))
    service = Service(settings)
    with running(service):
        stream.produce(make_values(600))
        wait_until(lambda: stream.count() == 600, what="the first verdicts")
        trainer = service.trainer
        assert trainer is not None
        pid = wait_until(lambda: trainer.pid, what="a trainer process")
        os.kill(pid, signal.SIGKILL)
        stream.produce(make_values(500, seed=1))
        wait_until(lambda: stream.count() == 1100, what="verdicts without a trainer")
        last = max(service.registry.versions())
        wait_until(lambda: trainer.pid not in (None, pid), what="another trainer")
        wait_until(lambda: max(service.registry.versions()) > last, what="a model of the new trainer")
        assert trainer.n_restarts >= 1
        assert service.metrics_registry.get_sample_value("srr_trainer_restarts_total") == trainer.n_restarts
        assert service.metrics_registry.get_sample_value("srr_false_alarm_rate") == settings.threshold.false_alarm_rate
        assert service.metrics_registry.get_sample_value("srr_loop_silent_seconds") is not None
    ids = Counter(v["id"] for v in stream.verdicts())
    assert set(ids) == ids_of(stream, 1100)
    assert set(ids.values()) == {1}


def test_a_trainer_that_hangs_is_killed_and_replaced(
    running: Any, stream: Stream, make_values: Callable[..., list[bytes]], wait_until: Callable[..., Any]
) -> None:
    service = Service(check_settings(stream.content(training={"hang_timeout": "5s"})))
    with running(service):
        trainer = service.trainer
        assert trainer is not None
        wait_until(lambda: trainer.status.phase == "waiting", what="a trainer at work")
        pid = trainer.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: trainer.pid not in (None, pid), what="another trainer")
        stream.produce(make_values(400))
        wait_until(lambda: stream.count() == 400, what="verdicts by a model of the new trainer")


def test_a_trainer_that_dies_of_lack_of_memory_never_stops_scoring(
    running: Any, stream: Stream, make_values: Callable[..., list[bytes]], wait_until: Callable[..., Any]
) -> None:
    with running(Service(check_settings(stream.content()))):
        stream.produce(make_values(400))
        wait_until(lambda: stream.count() == 400, what="the first verdicts")
    starved = Service(check_settings(stream.content(training={"memory_limit": "100MiB", "every": "1s"})))
    with running(starved):
        trainer = starved.trainer
        assert trainer is not None
        wait_until(lambda: trainer.n_restarts >= 1, what="the end of a starved trainer")
        stream.produce(make_values(300, seed=1))
        wait_until(lambda: stream.count() == 700, what="verdicts beside it")


def test_a_scorer_killed_with_9_resumes_without_a_missing_record(
    running: Any, stream: Stream, make_values: Callable[..., list[bytes]], wait_until: Callable[..., Any]
) -> None:
    with running(Service(check_settings(stream.content()))):
        stream.produce(make_values(400))
        wait_until(lambda: stream.count() == 400, what="a model")
    stream.produce(make_values(4600, seed=1))
    first = start(["score"], stream.write_settings(input={"max_batch": 50}))
    wait_until(lambda: stream.count() > 600, what="verdicts of the first scorer")
    first.kill()
    first.communicate(timeout=10)
    n_before = stream.count()
    assert n_before < 5000, "it had already scored everything: the kill came too late to prove anything"
    with running(Service(check_settings(stream.content()), has_trainer=False)):
        wait_until(lambda: stream.count() >= 5000, what="all verdicts")
    verdicts = stream.verdicts()
    assert {v["id"] for v in verdicts} == ids_of(stream, 5000)
    by_id: dict[str, dict[str, Any]] = {}
    for verdict in verdicts:
        assert by_id.setdefault(verdict["id"], verdict) == verdict  # a double is equal in every byte


def test_sigterm_finishes_commits_and_exits_0_within_10_s(
    running: Any, stream: Stream, make_values: Callable[..., list[bytes]], wait_until: Callable[..., Any]
) -> None:
    stream.produce(make_values(600))
    process = start(["run"], stream.write_settings())
    wait_until(lambda: stream.count() > 0, what="verdicts")
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=10)
    assert process.returncode == 0, log
    n_before = len(stream.verdicts())
    with running(Service(check_settings(stream.content()), has_trainer=False)):
        stream.produce(make_values(50, seed=1))
        wait_until(lambda: stream.count() >= 650, what="the rest")
    assert stream.count() == 650, f"records were scored twice after a clean stop at {n_before}"


def test_a_second_signal_exits_at_once(
    stream: Stream, wait_until: Callable[..., Any], ask: Any, free_port: int
) -> None:
    path = stream.write_settings(http={"scorer_port": free_port})
    process = start(["run"], path)
    wait_until(lambda: ask(free_port, "/livez")[0] == 200, what="the scorer")
    process.send_signal(signal.SIGSTOP)  # so that both signals wait for it together
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=5)
    assert process.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT)


def test_an_input_topic_that_does_not_exist_is_named_and_exits_3(stream: Stream) -> None:
    process = start(["run"], stream.write_settings(input={"topics": ["never-made"]}))
    _, log = process.communicate(timeout=60)
    assert process.returncode == 3, log
    assert "never-made" in log.splitlines()[-1]
    assert log.splitlines()[-1].startswith("error: ")


def test_an_output_topic_that_does_not_exist_is_named_before_anything_is_read(
    stream: Stream, make_values: Callable[..., list[bytes]]
) -> None:
    stream.produce(make_values(10))
    process = start(["score"], stream.write_settings(output={"alerts_topic": "no-such-alerts"}))
    _, log = process.communicate(timeout=60)
    assert process.returncode == 3, log
    assert "no-such-alerts" in log.splitlines()[-1]


def test_a_broker_that_is_not_there_is_waited_for_alive_and_not_ready(
    running: Any, stream: Stream, wait_until: Callable[..., Any], ask: Any, free_port: int
) -> None:
    nowhere = f"127.0.0.1:{free_port}"
    service = Service(check_settings(stream.content(kafka={"bootstrap_servers": nowhere, "connect_timeout": "1s"})))
    with running(service):
        wait_until(lambda: nowhere in ask(service.port, "/readyz")[1], what="a reason that names the broker")
        assert ask(service.port, "/readyz")[0] == 503
        assert ask(service.port, "/livez")[0] == 200
        trainer = service.trainer
        assert trainer is not None
        wait_until(lambda: nowhere in trainer.status.detail, what="the trainer's reason")


def test_a_schema_that_fits_no_record_holds_with_the_reason_and_commits_nothing(
    running: Any, stream: Stream, make_values: Callable[..., list[bytes]], wait_until: Callable[..., Any], ask: Any
) -> None:
    stream.produce(make_values(400))
    wrong = {"fields": [{"name": "durations"}]}
    service = Service(check_settings(stream.content(record=wrong)))
    with running(service):
        # Tansu cannot get over a member that leaves while it joins.
        wait_until(lambda: "srr_partitions_assigned 2.0" in ask(service.port, "/metrics")[1], what="the partitions")
        wait_until(lambda: "missing_field 400" in ask(service.port, "/readyz")[1], what="the reason")
        assert ask(service.port, "/readyz")[0] == 503
    assert stream.read(stream.dead_letter_topic) == []
    with running(Service(check_settings(stream.content()))):  # with the right one, nothing was lost
        wait_until(lambda: stream.count() == 400, what="all verdicts")
