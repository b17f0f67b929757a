"""The commands refuse what they do not know, and run on what ships."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import adbench, contamination, paper, streams
from benchmarks.datasets import ADBENCH, DatasetMissing, load_table


@pytest.fixture
def no_raw_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SRR_DATA_DIR", raising=False)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (adbench.main, ["--sets", "wine,beer"], "set 'beer' is unknown; allowed: annthyroid, breastw"),
        (adbench.main, ["--methods", "magic"], "method 'magic' is unknown; allowed: srr"),
        (contamination.main, ["--set", "beer"], "arrhythmia"),
        (contamination.main, [], "--set"),
        (streams.main, ["--sets", "river"], "stream 'river' is unknown; allowed: smd_machine_1_6"),
        (paper.main, ["figure9"], "figure4"),
        (paper.main, ["figure4", "--sets", "wine"], "set 'wine' is unknown; allowed: kdd, kddrev, thyroid, arrhythmia"),
        (paper.main, ["figure4", "--ratios", "5"], "not percent"),
        (
            paper.main,
            ["figure8", "--methods", "goad_srr,lof"],
            "lof cannot be varied or traced by figure8; allowed: goad",
        ),
        (adbench.main, ["--seeds", "0"], "whole numbers from 1 on"),
    ],
)
def test_what_is_unknown_is_refused_with_what_is_allowed(
    command: Callable[[Sequence[str]], int], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("no_raw_data")
def test_data_that_are_not_here_are_named_with_their_source(capsys: pytest.CaptureFixture[str]) -> None:
    for command, arguments, source in (
        (adbench.main, [], "github.com/Minqi824/ADBench"),
        (streams.main, [], "github.com/NetManAIOps/OmniAnomaly"),
        (paper.main, ["figure4", "--sets", "kdd"], "kdd.ics.uci.edu"),
    ):
        with pytest.raises(SystemExit) as ended:
            command(arguments)
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert "SRR_DATA_DIR" in told
        assert source in told


def test_a_folder_without_the_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SRR_DATA_DIR", str(tmp_path))
    with pytest.raises(DatasetMissing, match=r"adbench/fault.npz is not in SRR_DATA_DIR"):
        load_table("fault")


@pytest.mark.usefixtures("no_raw_data")
def test_sets_that_ship_whole_need_no_folder() -> None:
    thyroid = load_table("thyroid")
    assert (thyroid.X.shape, int(thyroid.is_anomaly.sum()), thyroid.source) == ((3772, 6), 93, "shipped")
    assert thyroid.X.dtype == np.float32


def test_a_table_of_one_folder_does_not_stand_for_that_of_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    np.savez(tmp_path / "thyroid.npz", X=np.zeros((2, 6), np.float32), y=np.zeros(2))
    for folder, n_rows in ((str(tmp_path), 2), ("", 3772)):
        monkeypatch.setenv("SRR_DATA_DIR", folder)
        assert len(load_table("thyroid").X) == n_rows


@pytest.mark.usefixtures("no_raw_data")
def test_a_run_is_written_and_resumed_and_ratios_that_cannot_be_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--set",
        "thyroid",
        "--methods",
        "gde",
        "--seeds",
        "2",
        "--ratios",
        "0,0.02,0.1",
        "--out",
        str(tmp_path),
    ]
    assert contamination.main(arguments) == 0
    first = capsys.readouterr()
    assert "Left out: 10.0%" in first.out
    assert first.err.count("gde: f1") == 4
    assert contamination.main(arguments) == 0
    assert "gde: f1" not in capsys.readouterr().err
    written = json.loads((tmp_path / "contamination-thyroid.json").read_text())
    assert [r["n_train_anomalies"] for r in written["records"]] == [0, 0, 37, 37]
    assert written["records"][0]["machine"]["n_threads"] == 1
    assert (tmp_path / "contamination-thyroid.png").stat().st_size > 1000
    assert "Left out: 10.0%" in (tmp_path / "contamination-thyroid.md").read_text()


@pytest.mark.usefixtures("no_raw_data")
def test_ratios_that_none_can_be_made_of_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        contamination.main(["--set", "thyroid", "--ratios", "0.3", "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "too few anomalies" in capsys.readouterr().err


@pytest.mark.usefixtures("no_raw_data")
def test_a_figure_of_the_paper_is_made_of_shipped_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["figure4", "--sets", "arrhythmia", "--methods", "gde,iforest", "--seeds", "1", "--ratios", "0,0.1"]
    assert paper.main([*arguments, "--out", str(tmp_path)]) == 0
    assert "the highest F1 has" in capsys.readouterr().out
    written = json.loads((tmp_path / "paper-figure4-arrhythmia.json").read_text())
    assert [(r["ratio"], r["n_train"], r["n_train_anomalies"]) for r in written["records"][::2]] == [
        (0.0, 193, 0),
        (0.1, 193, 19),
    ]
    assert (tmp_path / "paper-figure4-arrhythmia.png").exists()


def test_there_are_twenty_sets() -> None:
    assert len(set(ADBENCH)) == 20
