"""`srr-stream models …` as a person types it, on a registry in a folder."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from models.persistence import model_to_parts
from models.training import TrainingConfig, train
from srr_stream.cli import main
from srr_stream.live_model import make_canary
from srr_stream.registry import Manifest, Pointer, Registry


@pytest.fixture(scope="module")
def trained() -> tuple[Manifest, bytes]:
    rng = np.random.default_rng(0)
    model = train(
        {"a": rng.normal(size=200), "b": rng.normal(size=200)}, TrainingConfig(representation="identity"), seed=0
    ).model
    description, weights = model_to_parts(model)
    made = Manifest(
        version=0,
        created_at="2026-01-01T00:00:00.000+00:00",
        reason="cold start",
        schema={},
        schema_digest="abc",
        window={
            "ranges": [{"topic": "requests", "partition": 0, "start": 0, "stop": 12345}],
            "n_records": 12345,
            "n_bad": 6,
        },
        training={"seed": 1, "excluded_ratio": 0.0525, "gamma": 0.025, "seconds": {"train": 1.5}},
        gate={
            "mode": "enforce",
            "passed": True,
            "reason": "all checks passed",
            "checks": [
                {"name": "flagged_ratio", "value": 0.01, "bound": "≤ 0.05", "passed": True},
                {"name": "synthetic_auc", "value": 0.9, "bound": "", "passed": True},
            ],
        },
        model=description,
        canary=make_canary(model),
        libraries={"torch": "2.13.0"},
    )
    return made, weights


class Bench:
    """A registry with three versions: 1 previous, 2 champion, 3 rejected; and settings that name it."""

    def __init__(self, folder: Path, trained: tuple[Manifest, bytes]) -> None:
        self.folder = folder / "registry"
        self.path = folder / "settings.yaml"
        settings = {
            "kafka": {"bootstrap_servers": "localhost:1"},
            "input": {"topics": ["requests"], "start": "latest"},
            "record": {"fields": [{"name": "a"}, {"name": "b"}]},
            "output": {"scores_topic": "scores", "dead_letter_topic": "dead"},
            "registry": {"url": str(self.folder), "keep": 2},
        }
        self.path.write_text(json.dumps(settings))
        self.registry = Registry(str(self.folder), keep=2)
        made, weights = trained
        rejected = {**made.gate, "passed": False, "reason": "flagged_ratio is 0.4, allowed: ≤ 0.05"}
        rejected["checks"] = [{"name": "flagged_ratio", "value": 0.4, "bound": "≤ 0.05", "passed": False}]
        self.registry.publish(made, weights)
        self.registry.promote(1)
        self.registry.publish(replace(made, training={**made.training, "seed": 2}), weights)
        self.registry.promote(2, reason="the gate lets it")
        self.registry.publish(replace(made, gate=rejected), weights)

    def call(self, command: str, *arguments: object) -> Result:
        line = ["models", command, "-c", str(self.path), *map(str, arguments)]
        return CliRunner().invoke(main, line, catch_exceptions=False)

    def file(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture
def bench(tmp_path: Path, trained: tuple[Manifest, bytes]) -> Bench:
    return Bench(tmp_path, trained)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


# list


def test_the_list_has_every_version_with_its_role_and_what_the_gate_said(bench: Bench) -> None:
    lines = bench.call("list").stdout.splitlines()
    assert lines[0].split() == ["version", "role", "created", "representation", "records", "excluded", "size", "gate"]
    assert re.match(r"1 +previous +2026-01-01T\S+ +identity +12,345 +0\.0525 +\S+ KiB +passed: all checks", lines[1])
    assert re.match(r"2 +champion ", lines[2])
    assert re.match(r"3 +- .*rejected: flagged_ratio is 0\.4, allowed: ≤ 0\.05$", lines[3])


def test_the_list_as_json_has_the_same_figures(bench: Bench) -> None:
    bench.registry.propose(3)
    rows = json.loads(bench.call("list", "--json").stdout)
    assert [row["role"] for row in rows] == ["previous", "champion", "challenger"]
    assert rows[0]["n_records"] == 12345
    assert rows[0]["excluded_ratio"] == 0.0525
    assert rows[2]["gate"]["passed"] is False
    size = sum(path.stat().st_size for path in bench.file("versions/1").iterdir())
    assert rows[0]["size"] == size


def test_the_list_has_versions_of_other_formats_and_torn_ones(bench: Bench, trained: tuple[Manifest, bytes]) -> None:
    made, weights = trained
    bench.registry.publish(replace(made, format_version=0), weights)
    bench.file("versions/3/manifest.json").write_text("{")
    lines = bench.call("list").stdout.splitlines()
    assert "manifest.json is not JSON" in lines[3]
    assert "version 4 has format 0, this program reads 1" in lines[4]


def test_the_list_of_an_empty_registry_is_only_its_head(bench: Bench) -> None:
    bench.path.write_text(bench.path.read_text().replace(str(bench.folder), str(bench.folder / "empty")))
    assert len(bench.call("list").stdout.splitlines()) == 1
    assert json.loads(bench.call("list", "--json").stdout) == []


def test_the_list_with_a_damaged_pointer_warns_and_names_no_roles(bench: Bench) -> None:
    bench.file("current.json").write_text("{")
    result = bench.call("list")
    assert result.exit_code == 0
    assert "warning: registry" in result.stderr
    assert "champion" not in result.stdout


# show and diff


def test_a_version_is_shown_with_the_gates_checks(bench: Bench) -> None:
    shown = bench.call("show", 2).stdout
    assert re.search(r"^version +2$", shown, flags=re.M)
    assert re.search(r"^role +champion$", shown, flags=re.M)
    assert re.search(r"^window n_records +12345$", shown, flags=re.M)
    assert re.search(r"^window requests-0 +offsets 0 to 12,345$", shown, flags=re.M)
    assert re.search(r"^flagged_ratio +0\.01 +≤ 0\.05 +yes$", shown, flags=re.M)
    assert re.search(r"^synthetic_auc +0\.9 +only reported +yes$", shown, flags=re.M)


def test_a_version_without_checks_is_shown_without_their_table(bench: Bench, trained: tuple[Manifest, bytes]) -> None:
    made, weights = trained
    bench.registry.publish(replace(made, gate={}), weights)
    shown = bench.call("show", 4).stdout
    assert "allowed" not in shown
    assert re.search(r"^gate +-$", shown, flags=re.M)


def test_a_version_as_json_is_its_whole_manifest(bench: Bench) -> None:
    shown = json.loads(bench.call("show", 2, "--json").stdout)
    assert Manifest(**shown) == bench.registry.manifest(2)


@pytest.mark.parametrize("command", [("show", 9), ("diff", 1, 9), ("verify", 9), ("promote", 9)])
def test_a_version_that_is_not_there_is_an_error_with_those_that_are(bench: Bench, command: tuple[Any, ...]) -> None:
    result = bench.call(*command)
    assert result.exit_code == 3
    assert "there is no version 9; there are (1, 2, 3)" in result.stderr


def test_a_difference_names_what_differs_and_nothing_else(bench: Bench) -> None:
    lines = bench.call("diff", 1, 3).stdout.splitlines()
    assert lines[0].split() == ["version", "1", "version", "3"]
    assert [line.split()[0] for line in lines[1:]] == ["gate", "gate.flagged_ratio", "gate.synthetic_auc"]
    assert lines[2].split() == ["gate.flagged_ratio", "0.01", "0.4"]
    assert lines[3].split() == ["gate.synthetic_auc", "0.9", "-"]


def test_a_difference_as_json_has_both_values(bench: Bench) -> None:
    content = json.loads(bench.call("diff", 1, 2, "--json").stdout)
    assert content == {"versions": [1, 2], "differences": {"training.seed": [1, 2]}}


def test_a_version_does_not_differ_from_itself(bench: Bench) -> None:
    assert "versions 1 and 1 do not differ" in bench.call("diff", 1, 1).stdout


# promote and rollback


def test_a_promotion_keeps_the_reason(bench: Bench) -> None:
    result = bench.call("promote", 3, "--reason", "the gate is wrong here")
    assert result.stdout.startswith("champion is version 3, it was version 2 before")
    assert bench.registry.pointer() == Pointer(champion=3, previous=2)
    assert bench.registry.pointer().reason == "the gate is wrong here"


def test_a_promotion_repairs_a_damaged_pointer(bench: Bench) -> None:
    bench.file("current.json").write_text("{")
    assert bench.call("promote", 1).exit_code == 0
    assert bench.registry.pointer() == Pointer(champion=1, previous=2)


def test_a_damaged_version_is_not_promoted(bench: Bench) -> None:
    flip(bench.file("versions/3/model.safetensors"))
    result = bench.call("promote", 3)
    assert result.exit_code == 3
    assert "version 3: model.safetensors is altered or torn" in result.stderr
    assert bench.registry.pointer() == Pointer(champion=2, previous=1)


def test_a_rollback_says_what_it_did_and_a_second_one_refuses(bench: Bench) -> None:
    result = bench.call("rollback", "--reason", "too many alerts")
    assert result.stdout == "champion is version 1 again, it was version 2\n"
    assert "previous, rolled back" in bench.call("list").stdout
    second = bench.call("rollback")
    assert second.exit_code == 3
    assert "version 2 was rolled back itself (too many alerts)" in second.stderr


# verify


def test_good_versions_and_a_good_pointer_verify_with_exit_0(bench: Bench) -> None:
    result = bench.call("verify")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:3] == ["version 1: good", "version 2: good", "version 3: good"]
    assert re.fullmatch(r"pointer: good; champion is version 2, since \S+: the gate lets it", lines[3])


def test_an_empty_registry_verifies(bench: Bench) -> None:
    bench.path.write_text(bench.path.read_text().replace(str(bench.folder), str(bench.folder / "empty")))
    result = bench.call("verify")
    assert (result.exit_code, result.stdout) == (0, "pointer: good; no version is in use\n")


def test_every_version_that_is_not_good_is_named_with_exit_3(bench: Bench) -> None:
    flip(bench.file("versions/1/model.safetensors"))
    bench.file("versions/3/manifest.json").write_text("{")
    result = bench.call("verify")
    assert result.exit_code == 3
    assert "version 1: refused (hash): model.safetensors is altered or torn" in result.stdout
    assert "version 3: refused (format): manifest.json is not JSON" in result.stdout
    assert "pointer: previous is version 1, which is not good; srr-stream models promote N" in result.stdout
    assert result.stderr == "error: not good: version 1, version 3, the pointer\n"


def test_what_lies_beside_the_weights_is_checked_too(bench: Bench, trained: tuple[Manifest, bytes]) -> None:
    made, weights = trained
    bench.registry.publish(made, weights, {"refinement.json": b"{}"})
    assert bench.call("verify", 4).stdout == "version 4: good\n"
    bench.file("versions/4/refinement.json").write_text("[]")
    result = bench.call("verify", 4)
    assert result.exit_code == 3
    assert "version 4: refused (hash): refinement.json is altered or torn" in result.stdout


def test_a_version_that_scores_its_canary_differently_is_not_good(
    bench: Bench, trained: tuple[Manifest, bytes]
) -> None:
    made, weights = trained
    canary = {**made.canary, "score": [score + 1 for score in made.canary["score"]]}
    bench.registry.publish(replace(made, canary=canary), weights)
    result = bench.call("verify", 4)
    assert result.exit_code == 3
    assert "version 4: refused (canary): scores its canary batch differently" in result.stdout


def test_one_version_can_be_verified_alone(bench: Bench) -> None:
    flip(bench.file("versions/1/model.safetensors"))
    result = bench.call("verify", 2)
    assert (result.exit_code, result.stdout) == (0, "version 2: good\n")


def test_a_damaged_pointer_is_not_good(bench: Bench) -> None:
    bench.file("current.json").write_text("{")
    result = bench.call("verify")
    assert result.exit_code == 3
    assert re.search(r"^pointer: .*current\.json is not JSON.*models promote N", result.stdout, flags=re.M)
    assert result.stderr == "error: not good: the pointer\n"


def test_a_pointer_to_a_version_that_is_gone_is_not_good(bench: Bench) -> None:
    bench.file("versions/2/manifest.json").unlink()
    result = bench.call("verify")
    assert result.exit_code == 3
    assert "pointer: champion is version 2, which is not there" in result.stdout


# prune


def test_pruning_says_what_it_removed(bench: Bench, trained: tuple[Manifest, bytes]) -> None:
    for _ in range(2):
        bench.registry.publish(*trained)
    assert bench.call("prune").stdout == "removed versions/3\n"
    assert bench.registry.versions() == (1, 2, 4, 5)


def test_a_dry_run_removes_nothing(bench: Bench, trained: tuple[Manifest, bytes]) -> None:
    for _ in range(2):
        bench.registry.publish(*trained)
    leftover = bench.file("probe-" + "0" * 32)
    leftover.write_bytes(b"")
    long_ago = time.time() - 7200
    os.utime(leftover, (long_ago, long_ago))
    told = bench.call("prune", "--dry-run").stdout.splitlines()
    assert told == ["would remove versions/3", f"would remove {leftover.name}"]
    assert leftover.exists()
    assert bench.registry.versions() == (1, 2, 3, 4, 5)


def test_the_version_that_the_settings_pin_stays(bench: Bench, trained: tuple[Manifest, bytes]) -> None:
    for _ in range(2):
        bench.registry.publish(*trained)
    content = json.loads(bench.path.read_text())
    bench.path.write_text(json.dumps(content | {"gate": {"reference_version": 3, "max_forgotten_ratio": 0.5}}))
    assert bench.call("prune").stdout == "nothing to remove\n"


def test_nothing_to_prune_is_said(bench: Bench) -> None:
    assert bench.call("prune").stdout == "nothing to remove\n"


# Every command


@pytest.mark.parametrize("command", [("list",), ("verify",), ("prune",), ("rollback",), ("promote", 1), ("show", 1)])
def test_a_registry_that_cannot_be_read_is_exit_3_in_a_line(
    bench: Bench, command: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> Callable[..., Any]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("srr_stream.registry.files.LocalFiles.read", refuse)
    monkeypatch.setattr("srr_stream.registry.files.LocalFiles.list", refuse)
    result = bench.call(*command)
    assert result.exit_code == 3
    assert re.fullmatch(r"(warning: .*\n)?error: registry .*: cannot .*: Permission denied; check .*\n", result.stderr)


def test_settings_that_are_wrong_are_exit_2(bench: Bench) -> None:
    bench.path.write_text("kafka: {}\n")
    assert bench.call("list").exit_code == 2


def test_what_changes_something_can_answer_in_json(bench: Bench, trained: tuple[Manifest, bytes]) -> None:
    promoted = json.loads(bench.call("promote", 1, "--reason", "by hand", "--json").stdout)
    assert (promoted["champion"], promoted["previous"], promoted["reason"]) == (1, 2, "by hand")
    back = json.loads(bench.call("rollback", "--json").stdout)
    assert (back["champion"], back["previous"]) == (2, 1)
    bench.registry.publish(*trained)
    bench.registry.publish(*trained)
    dry = json.loads(bench.call("prune", "--dry-run", "--json").stdout)
    assert dry == {"is_dry_run": True, "removed": ["versions/3"]}
    assert json.loads(bench.call("prune", "--json").stdout) == {"is_dry_run": False, "removed": ["versions/3"]}


def test_a_check_of_all_versions_can_answer_in_json_and_its_exit_code_is_the_same(bench: Bench) -> None:
    good = json.loads(bench.call("verify", "--json").stdout)
    assert good["is_good"]
    assert [each["problem"] for each in good["versions"]] == [None, None, None]
    assert good["pointer"].startswith("good; champion is version 2")
    flip(bench.file("versions/2/model.safetensors"))
    result = bench.call("verify", "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert not found["is_good"]
    assert found["versions"][1]["problem"].startswith("refused (hash)")
    assert "champion is version 2, which is not good" in found["pointer"]
    alone = json.loads(bench.call("verify", 1, "--json").stdout)
    assert alone == {"is_good": True, "versions": [{"version": 1, "problem": None}]}
