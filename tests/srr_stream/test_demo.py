"""The demo as a person starts it, and a real Prometheus watching it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from consumers.records import ImageSpec
from srr_stream.data import DATASETS, Dataset, load
from srr_stream.demo.plan import demo_settings, plan_of
from srr_stream.demo.run import failure_of
from srr_stream.demo.summary import Summary

KEYS = {
    "produced",
    "scored",
    "dead_lettered",
    "missing",
    "doubled",
    "versions",
    "flagged_ratio",
    "auc",
    "ap",
    "seconds",
}
RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules.yml"


def demo(*arguments: object) -> list[str]:
    command = [sys.executable, "-c", "from srr_stream.cli import main; main()", "demo", "--json"]
    return [*command, *(str(a) for a in arguments)]


def free_ports(n: int) -> list[int]:
    probes = [socket.socket() for _ in range(n)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@contextmanager
def prometheus(folder: Path, targets: dict[str, int], port: int) -> Iterator[None]:
    """A real Prometheus that scrapes each target every second."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
            for name, target in targets.items()
        ],
    }
    path = folder / "prometheus.yml"
    path.write_text(json.dumps(config))
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={path}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


def query(port: int, expression: str) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return result
    except OSError:
        return []


@pytest.mark.operate  # its trainings keep up with the stream on a machine that does nothing else
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="NOT RUN: needs prometheus (Debian package prometheus)")
def test_the_demo_shows_what_the_project_promises_and_a_prometheus_sees_the_flagged_rate(
    tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    scorer, trainer, port = free_ports(3)
    picture = tmp_path / "demo.png"
    process = subprocess.Popen(
        demo("--plot", picture, "--scorer-port", scorer, "--trainer-port", trainer),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with prometheus(tmp_path, {"scorer": scorer, "trainer": trainer}, port):
            wait_until(lambda: len(query(port, "up == 1")) == 2, what="both endpoints up in Prometheus")
            rate = (
                'sum(rate(srr_records_scored_total{verdict="flagged"}[10s]))'
                " / sum(rate(srr_records_scored_total[10s])) > 0"
            )
            (answer,) = wait_until(lambda: query(port, rate), what="the flagged rate")
            assert 0 < float(answer["value"][1]) < 0.5
            ratio = "job_topic:srr_flagged:ratio_rate5m > 0"
            (recorded,) = wait_until(lambda: query(port, ratio), what="the recording rule")
            assert 0 < float(recorded["value"][1]) < 0.5
            assert wait_until(lambda: query(port, "srr_training_excluded_ratio"), what="the trainer's figures")
        stdout, stderr = process.communicate(timeout=200)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, stderr
    summary = json.loads(stdout)
    assert set(summary) == KEYS
    assert summary["produced"] == summary["scored"] + summary["dead_lettered"]
    assert summary["missing"] == summary["doubled"] == 0
    assert summary["dead_lettered"] == summary["produced"] // 1000
    assert len(summary["versions"]) >= 2  # on a slow machine the stream ends before a third has passed the gate
    assert summary["versions"][-1]["representation"] == "goad"
    assert summary["auc"] >= 0.93  # mostly 0.95 to 0.96; the timing of trainings moves it: see docs/decisions.md
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_demo_takes_a_file_of_ones_own_without_labels(
    tmp_path: Path, make_values: Callable[..., list[bytes]]
) -> None:
    path = tmp_path / "mine.ndjson"
    path.write_bytes(b"\n".join([*make_values(900), b'{"torn": ']) + b"\n")
    done = subprocess.run(
        demo("--input", path, "--plot", tmp_path / "demo.png", "--rate", 600),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"scorer: http://127\.0\.0\.1:[1-9]\d+/metrics", done.stderr)
    summary = json.loads(done.stdout)
    assert summary["produced"] == 901
    assert summary["dead_lettered"] == 1
    assert summary["auc"] is None
    assert summary["ap"] is None


@pytest.mark.parametrize("name", DATASETS)
def test_the_settings_of_a_demo_are_good_and_go_with_the_stream(name: str, tmp_path: Path) -> None:
    dataset = load(name)
    plan = plan_of(dataset)
    settings = demo_settings(dataset, plan, bootstrap_servers="127.0.0.1:1", folder=tmp_path)
    assert settings.record.format == dataset.format
    assert settings.window.min_size < len(dataset) / 2
    assert (plan.hold_at is not None) == (name == "boards")


def test_pictures_are_enough_for_a_training_before_any_of_them_is_held_back() -> None:
    boards = load("boards")
    plan = plan_of(boards)
    assert plan.hold_at is not None
    n_malformed = plan.hold_at // plan.malformed_every + 1
    assert plan.window["min_size"] < plan.n_at_once - n_malformed
    assert plan.n_at_once < plan.hold_at
    assert len(boards) - plan.hold_at >= len(boards) / 4  # at least a quarter is for the trained model
    assert plan_of(boards, rate=77).rate == 77


def test_nobodys_own_pictures_are_spoilt_or_held_back() -> None:
    pixels = np.zeros((60, 8, 8), dtype=np.uint8)
    mine = Dataset.from_pictures("mine", pixels, ImageSpec(8, 8, "grey"), ["normal"] * 60)
    plan = plan_of(mine, is_spoilt=False)
    assert plan.hold_at is None
    assert plan.malformed_every > 60
    assert plan.training["representation"] == "contrastive"


def make_folder(folder: Path, n: int) -> None:
    """Write pictures of stripes, one with a blot in thirty, and one that is none."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        picture = (np.indices((16, 16)).sum(axis=0) + rng.integers(8)) % 8 * 20 + rng.integers(0, 9, (16, 16))
        if i % 30 == 29:
            picture[4:11, 4:11] = 255
        PIL.Image.fromarray(picture.astype(np.uint8)).save(folder / f"{i:04d}.png")
    (folder / "torn.png").write_bytes(b"\x89PNG")


@pytest.mark.operate  # networks are trained: three quarters of a minute beside another test
def test_the_demo_takes_a_folder_of_pictures_and_shows_the_flagged_ones_with_their_heat_maps(tmp_path: Path) -> None:
    make_folder(tmp_path / "mine", 300)
    sheet = tmp_path / "sheet.png"
    done = subprocess.run(
        demo("--input", tmp_path / "mine", "--plot", tmp_path / "demo.png", "--sheet", sheet, "--rate", 40),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["produced"], summary["dead_lettered"], summary["missing"]) == (301, 1, 0)
    assert [version["representation"] for version in summary["versions"]] == ["pixels", "contrastive"]
    with PIL.Image.open(sheet) as shown:
        assert shown.format == "PNG"
        assert shown.width > 1000
        assert shown.height > 500  # four rows: 24 tiles at least


def test_a_file_of_an_unknown_kind_is_refused_with_what_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "mine.xlsx"
    path.write_bytes(b"PK")
    done = subprocess.run(demo("--input", path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "csv" in done.stderr
    assert done.stdout == ""


def _summary(**counts: int) -> Summary:
    every = {"produced": 10, "scored": 9, "dead_lettered": 1, "malformed": 1, "missing": 0, "doubled": 0, "flagged": 0}
    return Summary(**(every | counts), versions=(), quality=None, seconds=1.0)


@pytest.mark.parametrize(
    ("summary", "error", "was_stopped", "words"),
    [
        (_summary(), None, False, None),
        (_summary(dead_lettered=3, scored=7), None, False, None),  # a file of one's own has bad records of its own
        (_summary(missing=2), None, False, "2 records have no verdict"),
        (_summary(doubled=3), None, False, "3 have more than one"),
        (_summary(dead_lettered=0), None, False, "0 dead letters for 1 malformed"),
        (_summary(missing=2), RuntimeError("no broker"), False, "the replay failed: no broker"),
        (_summary(missing=2), None, True, None),  # whoever stops a demo knows that it is not complete
    ],
)
def test_a_demo_that_did_not_show_what_it_must_says_what_is_wrong(
    summary: Summary, error: Exception | None, was_stopped: bool, words: str | None
) -> None:
    failure = failure_of(summary, n_malformed=1, error=error, was_stopped=was_stopped)
    assert failure is None if words is None else words in str(failure)


def test_a_demo_that_is_interrupted_ends_with_the_summary_of_what_was_done(tmp_path: Path) -> None:
    process = subprocess.Popen(
        demo("--dataset", "thyroid", "--plot", tmp_path / "demo.png"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "version 1" in line:
            break
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert 0 < json.loads(stdout)["produced"] < 3772
