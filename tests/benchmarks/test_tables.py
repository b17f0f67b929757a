"""Tables hold what the records say, with the published figures beside it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import adbench, contamination, paper, results, streams
from benchmarks.published import PUBLISHED, TABLE1, published
from benchmarks.report import Summary, Table, failures, markdown, mean_ranks, page, percent, provenance, read, write


def record(method: str, dataset: str = "glass", seed: int = 0, **values: Any) -> dict[str, Any]:
    return {"method": method, "dataset": dataset, "seed": seed, "ratio": None, "fit_s": 1.0, "score_s": 0.5, **values}


def summary(**fields: Any) -> Summary:
    machine = {
        "cpu": "one",
        "n_cores": 2,
        "n_threads": 1,
        "system": "Linux",
        "python": "3.11",
        "versions": {"numpy": "2"},
    }
    given = {
        "name": "adbench",
        "title": "ADBench",
        "command": "python -m benchmarks.adbench",
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:10:00+00:00",
        "wall_s": 600.0,
        "commit": "abc",
        "code": "123",
        "machine": machine,
        "tables": [Table("T", ["a", "b"], [["1", "2"]], ["a note"])],
        "images": ["adbench.png"],
        "records": [{"commit": "abc", "code": "123", "machine": machine, "wall_s": 5.0}],
    }
    return Summary(**{**given, **fields})


def test_equal_scores_share_their_mean_rank() -> None:
    scores = {"one": {"x": 0.9, "y": 0.9, "z": 0.1}, "two": {"x": 0.1, "y": 0.5, "z": 0.5}}
    assert mean_ranks(scores) == {"x": (1.5 + 3) / 2, "y": (1.5 + 1.5) / 2, "z": (3 + 1.5) / 2}


def test_a_set_that_lacks_a_method_is_left_out_of_the_ranks() -> None:
    scores = {"one": {"x": 0.9, "y": 0.1}, "two": {"y": 0.5}}
    assert mean_ranks(scores) == {"x": 1.0, "y": 2.0}
    assert all(math.isnan(rank) for rank in mean_ranks({"a": {"x": 1.0}, "b": {"y": 1.0}}).values())


def test_the_adbench_table_is_the_mean_of_the_sets_and_not_of_the_records() -> None:
    records = [
        record("iforest", "glass", 0, auc=0.6, ap=0.2),
        record("iforest", "glass", 1, auc=0.8, ap=0.4),
        record("iforest", "wine", 0, auc=0.9, ap=0.5),
        record("gde", "glass", 0, auc=0.5, ap=0.1, fit_s=0.25),
        record("gde", "wine", 0, auc=0.5, ap=0.1, fit_s=0.25),
    ]
    rows = adbench.summary_table(records).rows
    assert list(rows[0]) == ["Isolation forest", "0.800", "0.400", "1.00", "1.00", "3.00", "1.00"]
    assert list(rows[1]) == ["Plain GDE", "0.500", "0.100", "2.00", "2.00", "1.50", "0.50"]
    assert adbench.set_table(records, "auc").rows[0][-1] == "Isolation forest"


def test_a_method_that_failed_has_a_dash_and_a_note() -> None:
    records = [record("iforest", auc=0.6, ap=0.2), {**record("gde"), "error": "ValueError: no luck"}]
    assert adbench.set_table(records, "auc").rows == [["glass", "0.600", "-", "Isolation forest"]]
    assert any("glass" in note for note in adbench.summary_table(records).notes)
    assert failures(records) == ["gde failed on glass (1 times): ValueError: no luck"]


def test_the_contamination_table_has_a_column_for_each_ratio_and_says_what_is_left_out() -> None:
    records = [record("gde", seed=s, ratio=r, f1=0.5 + r + s / 10) for r in (0.0, 0.1) for s in (0, 1)]
    table = contamination.table(records, "f1", [0.2])
    assert table.columns == ["method", "0.0%", "10.0%", "fit + score, s"]
    assert table.rows == [["Plain GDE", "55.0 ± 7.1", "65.0 ± 7.1", "1.50"]]
    assert "20.0%" in table.notes[0]
    assert "too few anomalies" in table.notes[0]


def test_counts_stand_beside_f1() -> None:
    counts = {"n_train": 50, "n_train_anomalies": 5, "n_test": 76, "n_test_anomalies": 25}
    assert contamination.counts_table([record("gde", ratio=0.1, **counts)]).rows == [["10.0%", "50", "5", "76", "25"]]


def test_the_streams_table_ends_with_the_mean_of_the_streams() -> None:
    records = [record("gde", "asd_server_1", auc=0.6), record("gde", "asd_server_2", auc=0.8)]
    assert [list(row) for row in streams.table(records, "auc").rows] == [
        ["asd_server_1", "0.600"],
        ["asd_server_2", "0.800"],
        ["mean", "0.700"],
        ["fit + score, s", "3.0"],
    ]


def test_a_stream_is_scored_once_in_order_by_models_that_have_not_seen_it() -> None:
    scored: list[int] = []
    for fitted_on, coming in streams.turns(50, 103, window=30, every=20):
        assert fitted_on.stop == coming.start
        assert fitted_on.stop - fitted_on.start == 30
        scored += range(coming.start, coming.stop)
    assert scored == list(range(50, 103))


@pytest.mark.parametrize(("dataset", "ratio"), list(PUBLISHED))
def test_every_published_figure_stands_in_the_table_of_its_set(dataset: str, ratio: float) -> None:
    methods = ("pca", "robust_pca", "lof", "goad", "goad_srr", "goad_otsu")
    records = [record(method, dataset, ratio=ratio, f1=0.5, auc=0.5, ap=0.5) for method in methods]
    column = {row[3] for row in paper.method_table("T", records).rows}
    assert set(PUBLISHED[dataset, ratio].values()) <= column


def test_published_figures_are_those_of_the_paper() -> None:
    assert published("thyroid", 0.015, "goad") == "50.6"
    assert published("thyroid", 0.015, "goad_srr") == published("thyroid", 0.015, "best") == "63.9"
    assert published("thyroid", 0.015, "goad_otsu") == "62.3"
    assert published("kdd", 0.06, "goad_srr") == "94.2"
    assert published("kdd", 0.0, "best") == "98.0 ± 0.2 (GOAD)"
    assert published("arrhythmia", 0.05, "goad") == published("kdd", 0.0, "iforest") == "-"


def test_the_paper_table_says_where_the_isolation_forest_wins() -> None:
    records = [record("iforest", "thyroid", ratio=0.0, f1=0.77, auc=0.9, ap=0.8)]
    records.append(record("goad_srr", "thyroid", ratio=0.0, f1=0.74, auc=0.9, ap=0.8))
    table = paper.method_table("T", records)
    assert table.notes[0] == "At 0.0% the highest F1 has Isolation forest: 77.0."
    assert table.rows[1][:4] == ["0.0%", "GOAD + SRR", "74.0", "75.1 ± 2.4 (GOAD)"]


def test_gains_are_taken_on_the_same_splits() -> None:
    records = [
        record("goad", "thyroid", seed, ratio=0.025, f1=f1, ap=0.3) for seed, f1 in ((0, 0.3), (1, 0.5), (2, 0.9))
    ]
    records += [record("goad_srr", "thyroid", seed, ratio=0.025, f1=f1, ap=0.4) for seed, f1 in ((1, 0.7), (0, 0.6))]
    assert np.allclose(paper.paired_gains(records, "goad", "goad_srr", "f1"), [0.2, 0.3])
    (row,) = paper.gain_table("thyroid", records).rows
    assert list(row) == ["2.5%", "GOAD + SRR over GOAD", "25.0 ± 7.1", "22.9", "10.0 ± 0.0"]


def test_gamma_is_twice_the_ratio_and_half_a_percent_on_clean_data() -> None:
    assert (paper.gamma_of(0.0), paper.gamma_of(0.015)) == (0.005, 0.03)


def test_refreshes_are_gathered_by_step_over_the_seeds() -> None:
    first = {"step": 29, "excluded_ratio": 0.04, "of_anomalies": 0.7, "of_normal_rows": 0.03}
    found = paper.refreshes(
        [
            record("goad_srr", refreshes=[first]),
            record("goad_srr", seed=1, refreshes=[{"step": 29, "excluded_ratio": 0.06}]),
        ]
    )
    assert found == {29: {"excluded_ratio": [0.04, 0.06], "of_anomalies": [0.7], "of_normal_rows": [0.03]}}


def test_table_1_has_the_hyperparameters_of_both_kinds_of_sets() -> None:
    assert TABLE1["n_transforms"] == ("32", "256")
    assert TABLE1["n_steps"] == ("1024", "65536")


def test_a_summary_that_was_written_is_read_again_with_its_provenance(tmp_path: Path) -> None:
    write(summary(), tmp_path)
    again = read(tmp_path / "adbench.json")
    assert again is not None
    assert markdown(again.tables[0]) == "### T\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n- a note\n"
    text = (tmp_path / "adbench.md").read_text()
    for fact in (
        "python -m benchmarks.adbench",
        "one, 2 cores, of which 1 used",
        "commit abc",
        "numpy 2",
        "![ADBench](adbench.png)",
    ):
        assert fact in text


def test_figures_of_another_commit_or_code_are_told() -> None:
    told = "\n".join(provenance(summary(commit="def", code="456")))
    assert "other commits**: abc" in told
    assert "1 of 1 figures are of another state" in told
    assert "other" not in "\n".join(provenance(summary()))


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells; needed: 2"):
        Table("T", ["a", "b"], [["1"]])


def test_percent_has_a_deviation_only_where_there_is_one() -> None:
    assert (percent([]), percent([0.5]), percent([0.4, 0.6])) == ("-", "50.0", "50.0 ± 14.1")


def test_the_results_page_takes_the_newest_run_of_each_command_with_its_picture(tmp_path: Path) -> None:
    out, docs = tmp_path / "out", tmp_path / "docs"
    write(summary(title="new"), out / "again")
    write(summary(title="old", finished="2025-01-01T00:00:00+00:00"), out)
    write(summary(name="streams", title="streams", images=[]), out)
    write(summary(name="streams-quick", title="quick"), out)
    (out / "other.json").write_text("{}")
    (out / "again" / "adbench.png").write_bytes(b"picture")
    assert results.main(["--out", str(out), "--docs", str(docs)]) == 0
    text = (docs / "results.md").read_text()
    assert "## new" in text
    assert "old" not in text
    assert "quick" not in text
    assert text.index("## new") < text.index("## streams")
    assert "](images/adbench.png)" in text
    assert (docs / "images" / "adbench.png").read_bytes() == b"picture"


def test_results_of_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        results.main(["--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "no result of a benchmark" in capsys.readouterr().err


def test_a_page_of_several_machines_says_so() -> None:
    one = summary()
    other = {**one.records[0], "machine": {**one.machine, "cpu": "another"}}
    assert "2 different machines" in page(replace(one, records=[*one.records, other]))


def test_excluded_shares_are_of_the_rows_that_were_judged() -> None:
    kept = np.array([1.0, 0.0, np.nan, 0.0, 1.0])
    is_anomaly = np.array([False, True, True, False, False])
    shares = paper._excluded(kept, is_anomaly)
    assert shares == {"of_anomalies": 1.0, "of_normal_rows": pytest.approx(1 / 3)}
    assert paper._excluded(kept, np.zeros(5, bool)) == {"of_normal_rows": 0.5}
    assert paper._excluded(None, is_anomaly) == {}
