"""The commands as a person types them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from srr_stream.cli import main
from srr_stream.registry import Registry

CONFIGS = Path(__file__).parents[2] / "configs"
Stream = Any


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_settings_file_is_good(path: Path) -> None:
    result = call("check-config", "-c", path)
    assert result.exit_code == 0, result.output
    document = json.loads(call("check-config", "-c", path, "--json").stdout)
    assert document["is_good"]
    assert f"good; {document['n_fields']} fields of {', '.join(document['topics'])}" in result.stdout


def test_every_command_that_ends_can_answer_in_json() -> None:
    def commands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                yield from ((f"{name} {inner}", each) for inner, each in commands(command))
            else:
                yield name, command

    without = {name for name, command in commands(main) if "--json" not in {o for p in command.params for o in p.opts}}
    assert without == {"run", "score", "train", "api", "completion"}


def test_all_problems_of_a_settings_file_are_told_at_once_with_exit_2(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "kafka: {bootstrap_server: localhost:9092}\n"
        "input: {topics: [a], start: begining}\n"
        "record: {fields: [{name: x}]}\n"
        "output: {dead_letter_topic: d, alerts_topic: z}\n"
        "training: {every: 15}\n"
    )
    result = call("check-config", "-c", path)
    assert result.exit_code == 2
    assert "kafka.bootstrap_server: unknown key; did you mean 'bootstrap_servers'?" in result.stderr
    assert "kafka.bootstrap_servers: is missing" in result.stderr
    assert "input.start: is 'begining'; allowed: 'earliest' or 'latest'" in result.stderr
    assert "training.every: is 15; allowed: a duration" in result.stderr
    assert len(result.stderr.splitlines()) == 4


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["models", "list", "--help"], ["--version"]])
def test_help_waits_for_no_library_of_numbers(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom srr_stream.cli import main\ntry:\n    main()\nfinally:\n"
        "    heavy = {'numpy', 'polars', 'pydantic', 'prometheus_client', 'kafka', 'torch'} & set(sys.modules)\n"
        "    assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_scores_waits_for_no_library_that_trains() -> None:
    code = (
        "import sys\nimport consumers.sources.kafka, consumers.sinks.kafka, models.persistence, srr_stream.service\n"
        "heavy = {'torch', 'sklearn', 'pandas', 'matplotlib', 'river'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_exit_codes_are_in_the_help() -> None:
    assert "Exit codes: 0 all went well" in call("--help").output


def test_one_training_by_hand_is_published_and_a_rollback_undoes_it(
    stream: Stream, make_values: Callable[..., list[bytes]]
) -> None:
    stream.produce(make_values(400))
    path = stream.write_settings()
    first = call("--log-level", "error", "train", "--once", "-c", path)
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["version"] == 1
    assert call("models", "rollback", "-c", path).exit_code == 3
    assert call("--log-level", "error", "train", "--once", "-c", path).exit_code == 0
    result = call("models", "rollback", "-c", path)
    assert result.exit_code == 0
    assert "champion is version 1 again" in result.stdout


def test_one_training_that_the_gate_rejects_exits_4(stream: Stream, make_values: Callable[..., list[bytes]]) -> None:
    stream.produce(make_values(400, contamination=0.1))
    path = stream.write_settings(gate={"max_excluded_ratio": 0.0001})
    result = call("train", "--once", "-c", path)
    assert result.exit_code == 4
    assert "excluded_ratio" in json.loads(result.stdout)["gate"]


def test_one_training_whose_model_waits_for_a_person_went_well(
    stream: Stream, make_values: Callable[..., list[bytes]]
) -> None:
    stream.produce(make_values(400))
    result = call("--log-level", "error", "train", "--once", "-c", stream.write_settings(gate={"mode": "manual"}))
    assert result.exit_code == 0
    assert json.loads(result.stdout)["decision"] == "waiting"
    assert Registry(str(stream.folder / "registry")).pointer().challenger == 1


def test_one_training_on_too_few_records_exits_3_with_the_numbers(
    stream: Stream, make_values: Callable[..., list[bytes]]
) -> None:
    stream.produce(make_values(20))
    result = call("train", "--once", "-c", stream.write_settings())
    assert result.exit_code == 3
    assert "only 20 of 20 records" in result.stderr


def test_a_request_for_a_training_waits_in_the_registry(stream: Stream) -> None:
    path = stream.write_settings()
    assert call("retrain", "-c", path, "--reason", "new release").exit_code == 0
    assert Registry(str(stream.folder / "registry")).take_request() == "new release"
    assert json.loads(call("retrain", "-c", path, "--reason", "again", "--json").stdout) == {"reason": "again"}
