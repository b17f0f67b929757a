"""``srr-stream doctor``: every check's good answer, its warning and its failure; most of the world is made up."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from consumers.cluster import ClusterState, TopicState, look_at_cluster
from consumers.errors import BrokerUnavailable, NotAuthorized, TopicMissing
from consumers.logs import MemoryLog
from consumers.records import Position
from models.persistence import model_to_parts
from models.training import TrainingConfig, train
from srr_stream.cli import main
from srr_stream.doctor import CHECKS, Finding, Status, World, diagnose, to_dict, worst
from srr_stream.doctor.facts import Devices
from srr_stream.live_model import make_canary
from srr_stream.registry import Manifest, Registry

Stream = Any
NOW = 1_700_000_000.0
GOOD_SETTINGS = {
    "cleanup.policy": "delete",
    "max.message.bytes": "1048588",
    "retention.ms": str(7 * 86_400_000),
    "min.insync.replicas": "2",
    "message.timestamp.type": "LogAppendTime",
}


def topic(name: str, n_partitions: int = 3, **changes: Any) -> TopicState:
    state = TopicState(name, n_partitions, 3, 3, 0, GOOD_SETTINGS)
    settings = changes.pop("settings", {})
    return replace(state, settings={**GOOD_SETTINGS, **settings}, **changes)


CLUSTER = ClusterState(
    "4.0",
    ("a:9092", "b:9092", "c:9092"),
    {
        "requests": topic("requests"),
        "requests.alerts": topic("requests.alerts"),
        "requests.scores": topic("requests.scores"),
        "requests.dead": topic("requests.dead"),
        "requests.labels": topic("requests.labels", 1, settings={"cleanup.policy": "compact"}),
    },
    2,
)


def with_topic(name: str, **changes: Any) -> ClusterState:
    """The good cluster with one topic another."""
    settings = changes.pop("settings", {})
    state = CLUSTER.topics[name]
    changed = replace(state, settings={**state.settings, **settings}, **changes)
    return replace(CLUSTER, topics={**CLUSTER.topics, name: changed})


class Log(MemoryLog):
    """A log in memory, of which retention may have taken the beginning."""

    def __init__(self, n: int = 400, *, n_deleted: int = 0, timestamp: float = NOW, value: bytes = b'{"x": 1}') -> None:
        super().__init__()
        self._n_deleted = n_deleted
        for _ in range(n):
            self.append("requests", value, timestamp=int(timestamp * 1000))

    def beginnings(self) -> Mapping[Position, int]:
        return {("requests", 0): self._n_deleted}

    def ends(self) -> Mapping[Position, int]:
        return {("requests", 0): len(self._records["requests", 0])}


def world(**changes: Any) -> World:
    """A world in which everything is as it must be, but for `changes`."""
    cluster = changes.pop("cluster", CLUSTER)
    log = changes.pop("log", None)
    good: dict[str, Any] = {
        "look_at_cluster": lambda connection, **asked: cluster,
        "check_access": lambda connection, **asked: None,
        "open_log": lambda settings, topics: log or Log(),
        "ask": lambda url: None,
        "can_listen": lambda host, port: True,
        "disk_free": lambda path: 50 << 30,
        "memory": lambda: (16 << 30, 8 << 30),
        "devices": lambda: Devices("2.9.0", (), 4),
        "now": lambda: NOW + 5,
    }
    return World(**{**good, **changes})


@pytest.fixture
def diagnosed(tmp_path: Path) -> Callable[..., dict[str, list[Finding]]]:
    """Give what diagnoses a good settings file, changed by sections, in a world."""

    def run(made: World, *, limit_s: float = 10.0, **sections: Mapping[str, Any]) -> dict[str, list[Finding]]:
        path = write_settings(tmp_path, **sections)
        found: dict[str, list[Finding]] = {}
        for finding in diagnose(path, world=made, limit_s=limit_s):
            found.setdefault(finding.check, []).append(finding)
        return found

    return run


Diagnosed = Callable[..., dict[str, list[Finding]]]


def write_settings(folder: Path, **sections: Mapping[str, Any]) -> Path:
    content: dict[str, dict[str, Any]] = {
        "kafka": {"bootstrap_servers": "a:9092"},
        "input": {"topics": ["requests"], "start": "earliest"},
        "record": {"fields": [{"name": "x"}]},
        "output": {
            "alerts_topic": "requests.alerts",
            "scores_topic": "requests.scores",
            "dead_letter_topic": "requests.dead",
        },
        "labels": {"topic": "requests.labels"},
        "window": {"min_size": 100, "max_size": 300},
        "registry": {"url": str(folder / "registry")},
        "api": {"state_dir": str(folder / "state")},
    }
    for section, values in sections.items():
        content[section] = {**content.get(section, {}), **values}
    path = folder / "srr-stream.yaml"
    path.write_text(json.dumps(content))
    return path


def one(found: dict[str, list[Finding]], check: str, status: Status) -> Finding:
    """The only finding of a check with this status; no other may be worse."""
    findings = found[check]
    mine = [finding for finding in findings if finding.status is status]
    assert len(mine) == 1, findings
    assert worst(findings) is (Status.OK if status is Status.SKIPPED else status), findings
    if status in (Status.WARNING, Status.FAILURE):
        assert mine[0].remedy, mine[0]
    return mine[0]


def test_in_a_good_world_nothing_is_wrong(diagnosed: Diagnosed) -> None:
    found = diagnosed(world())
    assert set(found) == {"settings", *(check.name for check in CHECKS)}
    everything = [finding for findings in found.values() for finding in findings]
    assert worst(everything) is Status.OK, everything
    assert {finding.check for finding in everything if finding.status is Status.SKIPPED} == {"service"}


# Kafka


def test_settings_that_are_wrong_are_all_told_and_the_rest_is_skipped(tmp_path: Path) -> None:
    path = write_settings(tmp_path, input={"start": "begining"}, kafka={"bootstrap_server": "x"})
    findings = diagnose(path, world=world())
    assert [finding.status for finding in findings[:2]] == [Status.FAILURE, Status.FAILURE]
    assert {finding.status for finding in findings[2:]} == {Status.SKIPPED}
    assert len(findings) == 2 + len(CHECKS)
    path = write_settings(tmp_path, registry={"url": "nosuch://x"})
    assert "registry.url: 'nosuch://x' cannot be opened" in diagnose(path, world=world())[0].text


def test_without_a_broker_only_this_machine_is_looked_at(diagnosed: Diagnosed) -> None:
    def refuse(connection: Any, **asked: Any) -> ClusterState:
        raise BrokerUnavailable("no answer from a:9092: refused; check kafka.bootstrap_servers")

    found = diagnosed(world(look_at_cluster=refuse))
    failure = one(found, "broker", Status.FAILURE)
    assert (failure.text, failure.remedy) == ("no answer from a:9092: refused", "check kafka.bootstrap_servers")
    kafka = {check.name for check in CHECKS if "broker" in check.needs}
    assert {name: found[name][0].status for name in kafka} == dict.fromkeys(kafka, Status.SKIPPED)
    assert found["records"][0].text == "needs broker and rights and topics"
    assert {finding.status for finding in found["disk"]} == {Status.OK}


def test_a_check_that_does_not_end_has_failed(diagnosed: Diagnosed) -> None:
    gate = threading.Event()
    try:
        found = diagnosed(world(look_at_cluster=lambda *a, **k: gate.wait(30) and CLUSTER), limit_s=0.05)
    finally:
        gate.set()
    assert one(found, "broker", Status.FAILURE).text == "no answer within 0.05 s"


def test_a_defect_of_a_check_is_no_finding(diagnosed: Diagnosed) -> None:
    with pytest.raises(ZeroDivisionError):
        diagnosed(world(memory=lambda: 1 // 0))


def test_rights_that_lack_come_with_the_commands_that_grant_them(diagnosed: Diagnosed) -> None:
    asked: dict[str, Any] = {}

    def refuse(connection: Any, **question: Any) -> None:
        asked.update(question)
        raise NotAuthorized("a:9092: user 'x' lacks READ on group 'g'; grant what is missing: kafka-acls.sh --add")

    failure = one(diagnosed(world(check_access=refuse)), "rights", Status.FAILURE)
    assert (failure.text, failure.remedy) == ("a:9092: user 'x' lacks READ on group 'g'", "kafka-acls.sh --add")
    assert asked["reads"] == ["requests", "requests.labels", "requests.alerts"]
    assert asked["writes"] == ["requests.alerts", "requests.scores", "requests.dead", "requests.labels"]
    assert asked["transactional_id"] is None
    diagnosed(world(check_access=refuse), api={"enabled": False})
    assert asked["reads"] == ["requests", "requests.labels"]
    assert asked["writes"] == ["requests.alerts", "requests.scores", "requests.dead"]


def test_a_topic_that_goes_in_this_moment_is_left_to_the_check_of_topics(diagnosed: Diagnosed) -> None:
    def gone(connection: Any, **question: Any) -> None:
        raise TopicMissing(["requests"], where="a:9092")

    assert one(diagnosed(world(check_access=gone)), "rights", Status.OK)


def without(*names: str) -> ClusterState:
    return replace(CLUSTER, topics={name: state for name, state in CLUSTER.topics.items() if name not in names})


def test_a_missing_input_topic_skips_what_reads_it(diagnosed: Diagnosed) -> None:
    found = diagnosed(world(cluster=without("requests")))
    assert "input.topics: there is no topic requests" in found["topics"][0].text
    assert found["topics"][0].status is Status.FAILURE
    assert one(found, "outputs", Status.OK)
    assert one(found, "records", Status.SKIPPED).text == "needs topics"


def test_missing_output_topics_come_with_what_makes_them(diagnosed: Diagnosed) -> None:
    found = diagnosed(world(cluster=without("requests.labels", "requests.alerts")))
    failures = [finding for finding in found["outputs"] if finding.status is Status.FAILURE]
    assert [finding.text.partition(":")[0] for finding in failures] == ["output.alerts_topic", "labels.topic"]
    assert "--create --topic requests.alerts --partitions 3, or correct output.alerts_topic" in failures[0].remedy
    assert "--config cleanup.policy=compact" in failures[1].remedy
    assert found["records"][0].status is Status.OK
    assert one(found, "labels", Status.SKIPPED)
    nothing = diagnosed(world(cluster=without(*(name for name in CLUSTER.topics if name != "requests"))))
    assert one(nothing, "replication", Status.SKIPPED).text == "there is no output topic"


def test_a_partition_without_a_leader_is_a_failure(diagnosed: Diagnosed) -> None:
    found = diagnosed(world(cluster=with_topic("requests", n_leaderless=2)))
    assert "2 of requests" in found["topics"][0].text
    assert worst(found["topics"]) is Status.FAILURE


def test_scorers_without_a_partition_and_outputs_with_too_few_are_warnings(diagnosed: Diagnosed) -> None:
    assert "2 in the group now" in one(diagnosed(world()), "partitions", Status.OK).text
    many = one(diagnosed(world(cluster=replace(CLUSTER, n_members=5))), "partitions", Status.WARNING)
    assert many.text == "5 scorers share 3 input partitions: 2 have nothing to do"
    few = one(diagnosed(world(cluster=with_topic("requests.scores", n_partitions=1))), "partitions", Status.WARNING)
    assert "requests.scores has 1" in few.text
    untold = one(diagnosed(world(cluster=replace(CLUSTER, n_members=None))), "partitions", Status.OK)
    assert "is not told" in untold.text


def test_copies_are_compared_with_what_writing_needs(diagnosed: Diagnosed) -> None:
    assert one(diagnosed(world()), "replication", Status.OK)
    refused = one(diagnosed(world(cluster=with_topic("requests.alerts", n_in_sync=1))), "replication", Status.FAILURE)
    assert refused.text == ("requests.alerts: 1 of 3 copies are in sync, min.insync.replicas is 2: writing is refused")
    lone = with_topic("requests.alerts", n_replicas=1, n_in_sync=1, settings={"min.insync.replicas": "1"})
    single = one(diagnosed(world(cluster=lone)), "replication", Status.WARNING)
    assert single.text == "one copy only, lost with its disk: requests.alerts"
    brittle = with_topic("requests.alerts", settings={"min.insync.replicas": "3"})
    assert (
        "one broker's outage stops scoring"
        in one(diagnosed(world(cluster=brittle)), "replication", Status.WARNING).text
    )
    lax = with_topic("requests.alerts", settings={"min.insync.replicas": "1"})
    assert one(diagnosed(world(cluster=lax)), "replication", Status.OK)
    exact = diagnosed(world(cluster=lax), delivery={"mode": "exactly_once"})
    assert "exactly_once or not" in one(exact, "replication", Status.WARNING).text


def test_the_topic_of_labels_must_be_compacted(diagnosed: Diagnosed) -> None:
    assert one(diagnosed(world()), "labels", Status.OK)
    deleted = with_topic("requests.labels", settings={"cleanup.policy": "delete"})
    failure = one(diagnosed(world(cluster=deleted)), "labels", Status.FAILURE)
    assert "--entity-name requests.labels --add-config cleanup.policy=compact" in failure.remedy
    assert one(diagnosed(world(), labels={"topic": None}), "labels", Status.SKIPPED)


def test_the_sizes_of_messages_must_fit(diagnosed: Diagnosed) -> None:
    assert one(diagnosed(world()), "message sizes", Status.OK)
    small = with_topic("requests.alerts", settings={"max.message.bytes": "500000"})
    assert (
        "requests.alerts takes 500,000 bytes"
        in one(diagnosed(world(cluster=small)), "message sizes", Status.FAILURE).text
    )
    large = with_topic("requests", settings={"max.message.bytes": "10485760"})
    assert (
        "larger ones become dead letters" in one(diagnosed(world(cluster=large)), "message sizes", Status.WARNING).text
    )
    silent = replace(CLUSTER, topics={name: replace(state, settings={}) for name, state in CLUSTER.topics.items()})
    assert one(diagnosed(world(cluster=silent)), "message sizes", Status.SKIPPED)


def test_the_newest_records_are_decoded(diagnosed: Diagnosed) -> None:
    assert one(diagnosed(world()), "records", Status.OK).text == "requests: 400 of the newest 400 can be read"
    some = Log()
    for _ in range(50):
        some.append("requests", b'{"x": "text"}', timestamp=int(NOW * 1000))
    warning = one(diagnosed(world(log=some)), "records", Status.WARNING)
    assert "400 of the newest 450 can be read; 50 wrong_type, such as: field x is" in warning.text
    assert "srr-stream init" in warning.remedy
    found = diagnosed(world(log=Log(value=b"no json")))
    assert "400 not_json" in one(found, "records", Status.FAILURE).text
    assert one(found, "retention", Status.OK)
    assert "holds no records" in one(diagnosed(world(log=Log(0))), "records", Status.WARNING).text


def test_pictures_without_pillow_are_a_failure(diagnosed: Diagnosed, monkeypatch: pytest.MonkeyPatch) -> None:
    from consumers.errors import LibraryMissing

    def missing(settings: Any) -> Any:
        raise LibraryMissing("pictures need Pillow; pip install 'srr-stream[images]'")

    monkeypatch.setattr("srr_stream.assembly.make_decoder", missing)
    assert "Pillow" in one(diagnosed(world()), "records", Status.FAILURE).text


def test_a_client_that_is_not_installed_is_a_failure(diagnosed: Diagnosed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    kafka = {"bootstrap_servers": "a:9092", "client": "confluent"}
    assert "srr-stream[confluent]" in one(diagnosed(world(), kafka=kafka), "records", Status.FAILURE).text


def test_a_log_that_cannot_be_read_fails_the_records_and_skips_what_needs_them(diagnosed: Diagnosed) -> None:
    def broken(settings: Any, topics: Any) -> Any:
        raise BrokerUnavailable("a:9092: requests-0 gives nothing; check the brokers")

    found = diagnosed(world(open_log=broken))
    assert one(found, "records", Status.FAILURE).remedy == "check the brokers"
    assert one(found, "retention", Status.SKIPPED)
    assert one(found, "clock", Status.SKIPPED)


def test_what_the_topic_keeps_is_compared_with_the_window(diagnosed: Diagnosed) -> None:
    assert one(diagnosed(world()), "retention", Status.OK).text == "400 records are there for a window of 100 to 300"
    few = one(diagnosed(world(log=Log(60))), "retention", Status.WARNING)
    assert few.text == "60 of window.min_size 100 records are there: the first model waits for the rest"
    never = one(diagnosed(world(log=Log(60, n_deleted=10))), "retention", Status.FAILURE)
    assert never.text.startswith("the topics keep 50 records, window.min_size is 100")
    rarely = one(diagnosed(world(log=Log(200, n_deleted=10))), "retention", Status.WARNING)
    assert rarely.text.endswith("windows are never full")
    compacted = with_topic("requests", settings={"cleanup.policy": "compact"})
    assert "is compacted" in one(diagnosed(world(cluster=compacted)), "retention", Status.WARNING).text
    span = diagnosed(world(), window={"mode": "span", "span": "30d"})
    assert (
        "requests keeps 168.0 h (retention.ms), window.span is 720.0 h" in one(span, "retention", Status.WARNING).text
    )


def test_the_clock_is_compared_as_far_as_stamps_tell(diagnosed: Diagnosed) -> None:
    assert "5 s ago" in one(diagnosed(world()), "clock", Status.OK).text
    behind = one(diagnosed(world(now=lambda: NOW - 30)), "clock", Status.WARNING)
    assert behind.text == "the broker stamped a record of requests 30 s after now: this clock is behind its"
    by_senders = with_topic("requests", settings={"message.timestamp.type": "CreateTime"})
    assert "cannot be known" in one(diagnosed(world(cluster=by_senders)), "clock", Status.SKIPPED).text
    ahead = diagnosed(world(cluster=by_senders, now=lambda: NOW - 120))
    assert "from 120 s after now" in one(ahead, "clock", Status.WARNING).text
    assert one(diagnosed(world(log=Log(0))), "clock", Status.SKIPPED)


# This machine


def test_room_on_the_disk(diagnosed: Diagnosed) -> None:
    assert [finding.status for finding in diagnosed(world())["disk"]] == [Status.OK, Status.OK]
    low = diagnosed(world(disk_free=lambda path: 300 << 20))["disk"]
    assert {finding.status for finding in low} == {Status.WARNING}
    assert low[0].text.startswith("api.state_dir: 300 MiB free at ")
    full = diagnosed(world(disk_free=lambda path: 1 << 20), api={"enabled": False})
    assert "make room" in one(full, "disk", Status.FAILURE).remedy
    remote = diagnosed(world(), registry={"url": "memory://models"}, api={"enabled": False})
    assert one(remote, "disk", Status.SKIPPED)


def test_room_in_memory(diagnosed: Diagnosed) -> None:
    assert one(diagnosed(world()), "memory", Status.OK).text == "8.0 GiB of 16.0 GiB free"
    assert one(diagnosed(world(memory=lambda: (1 << 30, 200 << 20))), "memory", Status.WARNING)
    limit = diagnosed(world(), training={"memory_limit": "32GiB"})
    assert "more than there is" in found_text(limit, "memory", Status.WARNING)
    assert one(diagnosed(world(memory=lambda: None)), "memory", Status.SKIPPED)
    pictures = diagnosed(
        world(memory=lambda: (4 << 30, 3 << 30)),
        record={"format": "image", "fields": [{"name": "p", "kind": "image", "size": [256, 256]}]},
        training={"representation": "cutpaste"},
        window={"max_size": 10_000},
    )
    assert "want about 8.3 GiB" in one(pictures, "memory", Status.WARNING).text


def found_text(found: dict[str, list[Finding]], check: str, status: Status) -> str:
    return " ".join(finding.text for finding in found[check] if finding.status is status)


def test_the_devices_that_are_asked_for(diagnosed: Diagnosed) -> None:
    assert "no CUDA device" in one(diagnosed(world()), "device", Status.OK).text
    cuda = Devices("2.9.0", ("H100",), 4)
    there = diagnosed(world(devices=lambda: cuda), training={"device": "cuda:0"})
    assert "H100" in one(there, "device", Status.OK).text
    second = diagnosed(world(devices=lambda: cuda), training={"device": "cuda:1"})
    assert "training.device is cuda:1, and PyTorch 2.9.0 sees 1 CUDA" in one(second, "device", Status.FAILURE).text
    assert one(diagnosed(world(), scoring={"device": "tpu"}), "device", Status.FAILURE)
    assert one(diagnosed(world(), training={"device": "cuda:x"}), "device", Status.FAILURE)
    threads = diagnosed(world(), training={"n_threads": 8})
    assert "training.n_threads is 8, and there are 4 processors" in one(threads, "device", Status.WARNING).text


def test_ports_are_free_or_taken_by_this_service(diagnosed: Diagnosed) -> None:
    assert one(diagnosed(world()), "ports", Status.OK).text == "free: 9108, 9109, 9110"
    taken = world(can_listen=lambda host, port: port != 9108)
    assert "http.scorer_port: 0.0.0.0:9108 is taken" in one(diagnosed(taken), "ports", Status.FAILURE).text
    ours = replace(taken, ask=lambda url: (200, "srr_build_info 1.0") if url.endswith("9108/metrics") else None)
    assert one(diagnosed(ours), "ports", Status.OK).text == "free: 9109, 9110; taken by the running service: 9108"
    doubled = diagnosed(world(), http={"trainer_port": 9108})
    assert "port 9108 is asked for twice" in one(doubled, "ports", Status.FAILURE).text
    any_port = diagnosed(world(), http={"scorer_port": 0, "trainer_port": 0}, api={"enabled": False})
    assert one(any_port, "ports", Status.OK).text == "free: http.scorer_port takes any, http.trainer_port takes any"


def test_the_token_can_be_read_by_nobody_else(diagnosed: Diagnosed, tmp_path: Path) -> None:
    assert "is made at the first start" in one(diagnosed(world()), "token", Status.OK).text
    token = tmp_path / "token"
    token.write_text("secret-of-a-test\n")
    token.chmod(0o600)
    file = {"token_file": str(token)}
    assert one(diagnosed(world(), api=file), "token", Status.OK)
    token.chmod(0o644)
    warning = one(diagnosed(world(), api=file), "token", Status.WARNING)
    assert (warning.remedy, "secret-of-a-test" in warning.text) == (f"chmod 600 {token}", False)
    token.write_text(" \n")
    assert "is empty" in one(diagnosed(world(), api=file), "token", Status.FAILURE).text
    (tmp_path / "state" / "api-token").mkdir(parents=True)  # what is no file cannot be read by anybody
    assert "cannot be read" in one(diagnosed(world()), "token", Status.FAILURE).text
    assert one(diagnosed(world(), api={"token": "x"}), "token", Status.OK)
    assert one(diagnosed(world(), api={"enabled": False}), "token", Status.SKIPPED)


# Models and the running service


def test_the_registry_is_written_to_but_never_made(diagnosed: Diagnosed, tmp_path: Path) -> None:
    assert "is made with the first model" in one(diagnosed(world()), "registry", Status.OK).text
    assert not (tmp_path / "registry").exists()
    (tmp_path / "registry").mkdir()
    assert "can be read and written" in one(diagnosed(world()), "registry", Status.OK).text
    assert not list((tmp_path / "registry").iterdir())
    (tmp_path / "file").write_text("")
    blocked = diagnosed(world(), registry={"url": str(tmp_path / "file")})
    assert one(blocked, "registry", Status.FAILURE)
    assert one(blocked, "models", Status.SKIPPED).text == "needs registry"


def test_a_registry_below_a_folder_of_others_is_a_failure(
    diagnosed: Diagnosed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written" in one(diagnosed(world()), "registry", Status.FAILURE).text


@pytest.fixture(scope="module")
def published() -> tuple[Manifest, bytes]:
    rng = np.random.default_rng(0)
    model = train({"x": rng.normal(size=200)}, TrainingConfig(representation="identity"), seed=0).model
    description, weights = model_to_parts(model)
    manifest = Manifest(
        version=0,
        created_at="2026-01-01T00:00:00.000+00:00",
        reason="cold start",
        schema={},
        schema_digest="",
        window={"ranges": [], "n_records": 200},
        training={},
        gate={},
        model=description,
        canary=make_canary(model),
        files={},
        libraries={},
    )
    return manifest, weights


def test_the_model_in_use_is_whole_and_fits(
    diagnosed: Diagnosed, tmp_path: Path, published: tuple[Manifest, bytes]
) -> None:
    from srr_stream.assembly import record_schema
    from srr_stream.loading import load_settings

    manifest, weights = published
    digest = record_schema(load_settings(write_settings(tmp_path)).record).digest
    registry = Registry(str(tmp_path / "registry"))
    registry.publish(replace(manifest, schema_digest=digest), weights)
    assert one(diagnosed(world()), "models", Status.OK).text == "no model is in use yet; 1 version"
    registry.propose(1)
    waiting = one(diagnosed(world()), "models", Status.WARNING)
    assert (waiting.text, waiting.remedy) == (
        "no model is in use yet; 1 version; version 1 waits for a person",
        "srr-stream models promote 1",
    )
    registry.promote(1)
    assert "champion is version 1 of 2026-01-01" in one(diagnosed(world()), "models", Status.OK).text
    registry.publish(replace(manifest, schema_digest="another"), weights)
    registry.promote(2)
    assert "was trained on other fields" in one(diagnosed(world()), "models", Status.FAILURE).text
    (tmp_path / "registry" / "versions" / "2" / "model.safetensors").write_bytes(b"torn")
    assert "altered or torn" in one(diagnosed(world()), "models", Status.FAILURE).text
    (tmp_path / "registry" / "versions" / "2" / "manifest.json").unlink()
    assert "version 2, is not there" in one(diagnosed(world()), "models", Status.FAILURE).text
    (tmp_path / "registry" / "current.json").write_text("{")
    assert "current.json" in one(diagnosed(world()), "models", Status.FAILURE).text


def test_the_running_service_is_asked_how_it_is(diagnosed: Diagnosed) -> None:
    def answering(live: int, ready: int) -> Callable[[str], tuple[int, str]]:
        return lambda url: (live, "alive") if url.endswith("livez") else (ready, "holding: 12 of 100\n")

    alone = {"http": {"trainer_port": 0}}
    good = diagnosed(world(ask=answering(200, 200)), **alone)["service"]
    assert [finding.status for finding in good] == [Status.OK, Status.SKIPPED]
    waiting = diagnosed(world(ask=answering(200, 503)), **alone)["service"][0]
    assert (waiting.status, waiting.text) == (Status.WARNING, "scorer: not ready: holding: 12 of 100")
    dead = diagnosed(world(ask=answering(503, 503)), **alone)["service"][0]
    assert dead.status is Status.FAILURE
    nobody = diagnosed(world(), **alone)["service"]
    assert {finding.status for finding in nobody} == {Status.SKIPPED}


# The real world


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_what_this_machine_tells_of_itself(listening: int, tmp_path: Path) -> None:
    here = World()
    assert not here.can_listen("127.0.0.1", listening)
    assert here.can_listen("127.0.0.1", 0)
    assert here.can_listen("::1", 0) in (True, False)
    memory = here.memory()
    assert memory is not None
    assert 0 < memory[1] <= memory[0]
    assert here.disk_free(tmp_path) > 0
    assert here.devices().n_processors >= 1
    assert here.ask("http://127.0.0.1:1/") is None


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def test_on_a_real_broker_the_command_says_a_line_each_and_exits_by_the_worst(
    stream: Stream, make_values: Callable[..., list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stream.folder)
    stream.produce(make_values(400))
    path = stream.write_settings(api={"enabled": False})
    result = call("doctor", "-c", path)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "ok       records        " + f"{stream.topic}: 400 of the newest 400 can be read" in lines
    assert "\x1b" not in result.stdout
    assert any(line.startswith("warning  replication") for line in lines)
    assert call("doctor", "--strict", "-c", path).exit_code == 3
    document = json.loads(call("doctor", "--json", "-c", path).stdout)
    assert (document["status"], document["counts"]["failure"]) == ("warning", 0)
    assert {finding["check"] for finding in document["findings"]} == {"settings", *(check.name for check in CHECKS)}
    assert not (stream.folder / "registry").exists()


def test_on_a_broken_setup_the_command_exits_3(stream: Stream) -> None:
    path = stream.write_settings(output={"alerts_topic": "test-not-there"}, kafka={"connect_timeout": "2s"})
    result = call("doctor", "-c", path)
    assert result.exit_code == 3
    assert "→ kafka-topics.sh" in result.stdout
    assert "failure" in result.stderr
    gone = call("doctor", "--json", "-c", stream.folder / "gone.yaml")
    assert (gone.exit_code, json.loads(gone.stdout)["status"]) == (3, "failure")


def test_a_cluster_tells_its_topics_and_members(stream: Stream) -> None:
    state = look_at_cluster(
        {"bootstrap_servers": [stream.bootstrap_servers]}, topics=[stream.topic, "none"], group_id="g"
    )
    assert state.topics == {stream.topic: TopicState(stream.topic, 2, 1, 1)}
    assert (state.brokers, state.n_members) == ((stream.bootstrap_servers,), 0)


@pytest.mark.kafka
def test_a_real_kafka_tells_settings_rights_and_members(secure_kafka: Any, topic_name: str, tmp_path: Path) -> None:
    """As the operator everything, as a guest who lacks rights what is left."""
    from consumers.kafka_client import make_consumer

    secure_kafka.create_topics({topic_name: 2})
    admin = {"bootstrap_servers": [secure_kafka.bootstrap_servers]}
    member = make_consumer(admin, group_id=topic_name, session_timeout_ms=6000)
    try:
        member.subscribe([topic_name])
        while not member.assignment():
            member.poll(timeout_ms=200)
        state = look_at_cluster(admin, topics=[topic_name], group_id=topic_name)
    finally:
        member.close(autocommit=False)
    found = state.topics[topic_name]
    assert (found.n_partitions, found.n_replicas, found.n_in_sync, state.n_members) == (2, 1, 1, 1)
    assert (found.settings["cleanup.policy"], found.settings["message.timestamp.type"]) == ("delete", "CreateTime")
    guest = look_at_cluster(secure_kafka.connection("guest"), topics=[topic_name], group_id=topic_name)
    assert (guest.topics, guest.n_members) == ({}, None)


@pytest.mark.kafka
def test_on_a_real_kafka_lacking_rights_and_an_uncompacted_topic_are_failures(
    secure_kafka: Any, topic_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {name: f"{topic_name}{name}" for name in ("", ".alerts", ".dead", ".labels")}
    secure_kafka.create_topics(dict.fromkeys(names.values(), 1))

    def settings(user: str | None) -> dict[str, Any]:
        login = {
            "security_protocol": "SASL_SSL",
            "ssl_cafile": str(secure_kafka.ca),
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_plain_username": user,
            "sasl_plain_password": secure_kafka.PASSWORDS.get(user or ""),
        }
        return {
            "kafka": {"bootstrap_servers": secure_kafka.secure_servers, **login},
            "input": {"topics": [names[""]], "start": "earliest", "group_id": topic_name},
            "output": {"alerts_topic": names[".alerts"], "scores_topic": None, "dead_letter_topic": names[".dead"]},
            "labels": {"topic": names[".labels"]},
        }

    as_admin = diagnose(write_settings(tmp_path, **settings("admin")))
    texts = {finding.check: finding for finding in as_admin if finding.status is Status.FAILURE}
    assert set(texts) == {"labels"}
    assert f"{names['.labels']} is not compacted" in texts["labels"].text
    assert {finding.check for finding in as_admin if finding.status is Status.OK} >= {"rights", "topics", "outputs"}
    as_guest = [f for f in diagnose(write_settings(tmp_path, **settings("guest"))) if f.status is Status.FAILURE]
    assert any("READ on group" in finding.text and "kafka-acls.sh" in finding.remedy for finding in as_guest)
    wrong = settings("scorer")
    wrong["kafka"]["sasl_plain_password"] = "wrong-secret"
    refused = diagnose(write_settings(tmp_path, **wrong))
    assert any(finding.check == "broker" and finding.status is Status.FAILURE for finding in refused)
    assert "wrong-secret" not in json.dumps(to_dict(refused))
