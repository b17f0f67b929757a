"""The commands that measure speed: what they say of figures, and that each runs."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.report import Table, read
from benchmarks.speed import latency, memory, pairs, summary
from benchmarks.speed.__main__ import COMMANDS
from benchmarks.speed.pairs import Claim, Run, interleaved, ratio

ROOT = Path(__file__).parents[2]
QUICK = ("consume", "score", "train", "swap", "start")
"""Commands that can make a run of seconds, without a broker."""


def test_every_contestant_has_its_turn_in_every_round_and_the_warm_up_does_not_count() -> None:
    turns: list[str] = []
    made = {name: (lambda name=name: turns.append(name) or float(len(turns))) for name in "abc"}
    figures = interleaved(made, n_rounds=4, n_warm_up=1, say=lambda text: None)
    assert [sorted(turns[i : i + 3]) for i in range(0, 15, 3)] == [["a", "b", "c"]] * 5
    assert {len(values) for values in figures.values()} == {4}
    assert min(values.min() for values in figures.values()) > 3


def test_a_ratio_is_the_median_of_the_rounds_not_that_of_the_rates() -> None:
    claim = ratio("x", np.array([1.0, 20.0, 3.0]), np.array([2.0, 10.0, 2.0]), "y", 1.5)
    assert claim.value == 1.5
    assert claim.spread == (1.0, 1.75)
    assert claim.is_met
    assert not Claim("x", 2.0, "ms", "asked", 1.0, at_least=False).is_met
    assert Claim("x", 2.0, "ms", "asked", 1.0, at_least=False).as_row()[4] == "**no**"


def test_a_rate_is_taken_over_as_many_calls_as_take_the_time() -> None:
    n_calls = 0

    def work() -> None:
        nonlocal n_calls
        n_calls += 1

    assert pairs.rate(work, 10, least_s=0.01) > 1000
    assert n_calls > 10


def test_a_run_leaves_json_a_page_and_a_picture_and_the_summary_gathers_them(tmp_path: Path) -> None:
    run = Run("consume", ["--out", str(tmp_path), "--quick"], out=tmp_path)
    claim = Claim("decoding", 2.5, "×", "the slow way", 1.0, spread=(2.0, 3.0))
    table = Table("Rates", ["", "records/s"], [["a", "1"]])
    assert run.finish("Consuming", [claim], [table], bars={"rates": {"a": 1.0, "b": 2.0}}) == 0
    left = read(tmp_path / "speed-consume.json")
    assert left is not None
    assert left.command == "python -m benchmarks.speed consume --quick"
    assert (tmp_path / "speed-consume.png").stat().st_size > 1000
    page = tmp_path / "docs" / "performance.md"
    page.parent.mkdir()
    page.write_text("# Mine\n\nwritten by hand\n")
    for _ in range(2):  # a second call replaces what the first one wrote
        assert summary.main(["--out", str(tmp_path), "--page", str(page)]) == 0
    elsewhere = tmp_path / "elsewhere"
    Run("start", ["--out", str(elsewhere)], out=elsewhere).finish(
        "Starting", [Claim("--help", 0.2, "s", "asked", 0.3, at_least=False)], [table], bars={"s": {"a": 1.0}}
    )
    assert summary.main(["--out", str(elsewhere), "--page", str(page)]) == 0  # what it has not is left
    text = page.read_text()
    assert text.startswith("# Mine\n\nwritten by hand\n")
    assert text.count("| decoding | the slow way | 2.5 × (2 to 3) | ≥ 1 × | yes |") == 2  # all claims, and its own
    assert text.count("| --help | asked | 0.2 s | ≤ 0.3 s | yes |") == 2
    assert "![Consuming](images/speed-consume.png)" in text
    assert (page.parent / "images" / "speed-consume.png").exists()


def test_a_summary_of_nothing_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        summary.main(["--out", str(tmp_path)])
    assert "no result of python -m benchmarks.speed" in capsys.readouterr().err


def test_a_wrong_command_is_told_which_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", "fly"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_asked_for_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = import_module(f"benchmarks.speed.{name.replace('-', '_')}")
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    assert f"python -m benchmarks.speed {name}" in capsys.readouterr().out


def test_latencies_and_rates_of_both_clients_become_claims(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full_load(*arguments: Any) -> float:
        return {latency.ALONE: 1000.0, latency.BESIDE: 750.0, latency.BUSY: 800.0}[arguments[-1]]

    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    monkeypatch.setattr(latency.stream, "kafka", lambda home: nullcontext((None, tmp_path)))
    monkeypatch.setattr(latency.stream, "model", lambda config: None)
    monkeypatch.setattr(latency.stream, "filled", lambda *arguments: "full")
    monkeypatch.setattr(latency, "full_load", full_load)
    monkeypatch.setattr(latency, "at_a_rate", lambda *arguments: np.arange(1.0, 102.0) * (2 if arguments[4] else 1))
    assert latency.main(["--rounds", "2", "--out", str(tmp_path)]) == 0
    left = read(tmp_path / "speed-latency.json")
    assert left is not None
    table = next(table for table in left.tables if table.title == "Against peers and limits")
    rows = {row[0]: row for row in table.rows}
    for client in ("kafka-python", "confluent"):
        assert rows[f"latency at 5,000 records/s, {client}, p50"][2:5] == ["51 ms", "≤ 15 ms", "**no**"]
        assert rows[f"latency at 5,000 records/s, {client}, p99"][2:5] == ["100 ms", "≤ 60 ms", "**no**"]
        assert rows[f"p99 beside a training, {client}"][2] == "2 × (2 to 2)"
    shares = [row[1:5] for row in table.rows if row[0].startswith("throughput beside a training")]
    assert shares == 2 * [
        ["alone", "0.75 × (0.75 to 0.75)", "≥ 0.9 ×", "**no**"],
        ["beside a busy processor", "0.938 × (0.938 to 0.938)", "≥ 0.9 ×", "yes"],
    ]


def test_memory_over_a_run_of_both_clients_becomes_claims(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    samples = np.column_stack([np.arange(30.0), np.linspace(300.0, 329.0, 30)])
    samples[:10, 1] = 340.0  # what a start takes for a while does not count as growth
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    monkeypatch.setattr(memory.stream, "kafka", lambda home: nullcontext((None, tmp_path)))
    monkeypatch.setattr(memory.stream, "model", lambda config: None)
    monkeypatch.setattr(memory.stream, "filled", lambda *arguments: "memory")
    monkeypatch.setattr(memory, "resident", lambda *arguments: samples)
    assert memory.main(["--out", str(tmp_path)]) == 0
    left = read(tmp_path / "speed-memory.json")
    assert left is not None
    rows = {row[0]: row for table in left.tables if table.title == "Against peers and limits" for row in table.rows}
    for client in ("kafka-python", "confluent"):
        name = f"scorer at full load, GOAD M = 32, {client}"
        assert rows[name][2:5] == ["340 MiB resident", "≤ 600 MiB resident", "yes"]
        assert rows[f"{name}: growth"][2:5] == ["1 MiB a minute", "≤ 1 MiB a minute", "yes"]


@pytest.mark.parametrize("name", ["end-to-end", "latency", "memory"])
def test_what_needs_a_broker_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KAFKA_HOME", raising=False)
    with pytest.raises(SystemExit):
        import_module(f"benchmarks.speed.{name.replace('-', '_')}").main([])
    assert "KAFKA_HOME" in capsys.readouterr().err


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_run_leaves_its_claims(name: str, tmp_path: Path) -> None:
    module = import_module(f"benchmarks.speed.{name.replace('-', '_')}")
    assert module.main(["--quick", "--out", str(tmp_path)]) == 0
    left = read(tmp_path / f"speed-{name}.json")
    assert left is not None
    assert left.tables
