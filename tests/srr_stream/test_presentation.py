"""What the demo shows while it runs, and what it says and draws at the end."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from srr_stream.demo.live import LiveView, PlainView, Snapshot, line, make_view, render, sparkline
from srr_stream.demo.summary import Summary, Verdict, Version, plot, summarise, to_text

SNAPSHOT = Snapshot(
    elapsed_s=31.2,
    produced=42_100,
    total=61_850,
    scored=41_980,
    dead_lettered=42,
    records_per_s=1987.4,
    flagged_ratio=0.034,
    lag=78,
    window_size=2000,
    window_target=2000,
    trainer_status="training: 15,000 new records",
    training_step=120,
    training_n_steps=512,
    excluded_ratio=0.061,
    version=2,
    representation="goad",
    swaps=((4.1, 1, "identity", "first model"), (12.0, 2, "goad", "configured representation")),
)
BEFORE_THE_FIRST_MODEL = replace(
    SNAPSHOT,
    elapsed_s=1.0,
    scored=0,
    flagged_ratio=None,
    window_size=420,
    trainer_status="waiting: 420 of 2000",
    training_n_steps=0,
    excluded_ratio=None,
    version=None,
    representation=None,
    swaps=(),
)


VERSIONS = (
    Version(1, "identity", "first model", 1.5, 0.1, 2000),
    Version(2, "goad", "15,000 new records", 20.0, 0.05, 10_000),
    Version(3, "goad", "never used", 40.0, 0.04, 10_000),
)


def some_summary(labels: list[bool] | None = None) -> Summary:
    """Seven records: five scored, one of them twice; one dead-lettered; one missing."""
    index_by_id = {f"t-0-{i}": i for i in range(7)}
    severities = [0.1, 1.4, 0.3, 2.0, 0.2]
    verdicts = [Verdict(f"t-0-{i}", s, s >= 1, 1 + (i > 2), 100.0 + i) for i, s in enumerate(severities)]
    doubled = verdicts[0]._replace(severity=9.0, flagged=True, version=2)
    strange = Verdict("other-0-0", 5.0, True, 1, 100.0)
    return summarise(
        index_by_id,
        {5},
        [*verdicts, doubled, strange],
        ["t-0-5", "other-0-1"],
        None if labels is None else np.array(labels),
        VERSIONS,
        47.1234,
    )


def test_every_record_is_accounted_for_exactly() -> None:
    summary = some_summary()
    assert (summary.produced, summary.scored, summary.dead_lettered) == (7, 5, 1)
    assert (summary.missing, summary.doubled) == (1, 1)
    assert summary.flagged_ratio == 2 / 5


def test_a_record_with_a_verdict_and_a_dead_letter_is_doubled() -> None:
    verdict = Verdict("t-0-0", 0.1, False, 1, 0.0)
    summary = summarise({"t-0-0": 0}, set(), [verdict], ["t-0-0"], None, (), 1.0)
    assert (summary.missing, summary.doubled) == (0, 1)


def test_each_version_has_its_own_share_of_the_verdicts() -> None:
    figures = {each.version.number: (each.scored, each.flagged_ratio) for each in some_summary().versions}
    assert figures == {1: (3, 1 / 3), 2: (2, 1 / 2), 3: (0, None)}


def test_each_version_is_measured_on_what_it_scored() -> None:
    # Version 1 gave the severities 0.1, 1.4, 0.3; version 2 gave 2.0 and 0.2.
    versions = some_summary([False, False, True, True, False, True, False]).versions
    assert [each.auc for each in versions] == [0.5, 1.0, None]
    assert [each.auc for each in some_summary(None).versions] == [None, None, None]
    text = to_text(some_summary([False, False, True, True, False, True, False]), Path("demo.png"))
    assert "0.500" in text
    assert "1.000" in text


def test_quality_is_measured_on_severities_and_flags_of_the_first_verdicts() -> None:
    quality = some_summary([False, False, False, True, True, True, False]).quality
    assert quality is not None
    # Anomalies 2.0 and 0.2 against normals 0.1, 1.4, 0.3: 3 and 1 of 3 pairs each in the right order.
    assert quality.auc == pytest.approx(4 / 6)
    assert quality.ap == pytest.approx((1 / 1 + 2 / 4) / 2)
    assert (quality.precision, quality.recall, quality.n_anomalies) == (1 / 2, 1 / 2, 2)


@pytest.mark.parametrize("labels", [None, [False] * 7, [True] * 7])
def test_without_labels_of_both_kinds_there_is_no_auc(labels: list[bool] | None) -> None:
    content = some_summary(labels).to_dict()
    assert content["auc"] is None
    assert content["ap"] is None


def test_the_summary_of_nothing_divides_by_nothing() -> None:
    summary = summarise({}, set(), [], [], np.array([], dtype=np.bool_), (), 0.0)
    assert summary.flagged_ratio is None
    assert "0 records" in to_text(summary, Path("demo.png"))


def test_the_json_form_has_exactly_the_promised_keys() -> None:
    content = some_summary([False, False, False, True, True, True, False]).to_dict()
    keys = "produced scored dead_lettered missing doubled versions flagged_ratio auc ap seconds"
    assert list(content) == keys.split()
    assert content["seconds"] == 47.123
    assert content["versions"][1] == {
        "version": 2,
        "representation": "goad",
        "reason": "15,000 new records",
        "at_s": 20.0,
        "excluded_ratio": 0.05,
        "window": 10_000,
        "scored": 2,
        "flagged_ratio": 0.5,
        "auc": None,
    }


def test_the_text_says_what_happened_how_good_it_was_and_what_each_version_did() -> None:
    text = to_text(some_summary([False, False, False, True, True, True, False]), Path("a/demo.png"))
    assert "7 records in 47 s: 5 scored, 1 dead-lettered (1 malformed on purpose), 1 missing, 1 doubled" in text
    assert "flagged: 2 of 5 (40.0 %)" in text
    assert "AUC 0.667, average precision 0.750" in text
    assert "precision 50.0 %, recall 50.0 %" in text
    (row,) = [row for row in text.splitlines() if "15,000 new records" in row]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "2",
        "20.0 s",
        "goad",
        "15,000 new records",
        "10,000",
        "5.0 %",
        "2",
        "50.0 %",
    ]
    assert text.endswith("picture: a/demo.png")


def test_a_reason_is_shown_as_it_is_and_not_taken_for_markup() -> None:
    versions = (replace(VERSIONS[0], reason="[b]why[/]"),)
    assert "[b]why[/]" in to_text(summarise({}, set(), [], [], None, versions, 0.0), Path("demo.png"))


def test_without_labels_the_text_says_so_instead_of_figures() -> None:
    text = to_text(some_summary(), Path("demo.png"))
    assert "no labels" in text
    assert "AUC" not in text


@pytest.mark.parametrize("n", [0, 1, 500])
def test_a_picture_is_drawn_of_many_verdicts_of_one_and_of_none(tmp_path: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    severities = rng.exponential(0.4, n)
    verdicts = [Verdict(f"t-0-{i}", s, bool(s >= 1), 1 + (i > 250), 1e9 + i / 10) for i, s in enumerate(severities)]
    plot(tmp_path / "demo.png", verdicts, VERSIONS, title="kdd")
    content = (tmp_path / "demo.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) == (1200, 840)


def test_the_picture_names_each_model_where_it_took_over() -> None:
    from matplotlib.figure import Figure

    from srr_stream.demo.summary import draw_rate

    axes = Figure().subplots()
    verdicts = [Verdict(f"t-0-{i}", 0.5, i >= 6, 1 + (i >= 4), 50.0 + i) for i in range(11)]
    draw_rate(axes, verdicts, VERSIONS)
    assert {text.get_text(): text.xy[0] for text in axes.texts} == {"v1 identity": 0.0, "v2 goad": 4.0}
    values, edges, _ = axes.patches[0].get_data()
    assert np.nanmax(values[edges[:-1] < 5.9]) == 0
    assert np.nanmin(values[edges[:-1] >= 6]) == 100


def test_a_picture_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        plot(tmp_path / "nowhere" / "demo.png", [], (), title="kdd")


def shown(snapshot: Snapshot, ratios: tuple[float | None, ...] = (), *, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(snapshot, ratios))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_panels_show_the_stream_the_trainer_and_the_models() -> None:
    text = shown(SNAPSHOT, (0.0, 0.1, 0.034))
    for part in (
        "42,100 of 61,850",
        "41,980, 1,987/s",
        "3.4 % lately, at most 10.0 %",
        "78 records not yet scored",
        "42 malformed",
        "training: 15,000 new records",
        "step 120 of 512",
        "6.1 % of the window",
        "▁█▃",
    ):
        assert part in text
    rows = [row for row in text.splitlines() if "identity" in row or "configured representation" in row]
    assert [row.strip("│ ").split()[:4] for row in rows] == [["4.1", "s", "1", "identity"], ["12.0", "s", "2", "goad"]]
    assert "2,000 records for the first model" not in text


def test_before_the_first_model_the_panels_say_that_records_wait_and_for_what() -> None:
    text = shown(BEFORE_THE_FIRST_MODEL)
    assert "420 of 2,000 records for the first model" in text
    assert "none yet: records wait in the log" in text
    assert "step" not in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_panels_stay_within_the_terminal(width: int) -> None:
    assert max(len(row) for row in shown(SNAPSHOT, (0.1,) * 30, width=width).splitlines()) <= width


def test_only_the_newest_swaps_are_listed() -> None:
    swaps = tuple((float(n), n, "goad", f"reason {n}.") for n in range(1, 20))
    text = shown(replace(SNAPSHOT, swaps=swaps, version=19))
    assert "reason 19." in text
    assert "reason 14." in text
    assert "reason 13." not in text


def test_text_of_others_is_shown_as_it_is_and_not_taken_for_markup() -> None:
    odd = replace(SNAPSHOT, trainer_status="[red]no", swaps=((1.0, 2, "goad", "[/] done"),))
    assert "[red]no" in shown(odd)
    assert "[/] done" in shown(odd)
    console = Console(file=io.StringIO(), width=200)
    PlainView(console).update(odd)
    assert isinstance(console.file, io.StringIO)
    assert "[/] done" in console.file.getvalue()
    assert "[red]no" in console.file.getvalue()


def test_a_sparkline_of_nothing_and_of_zeros_is_flat() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.0, 0.0, None]) == "▁▁ "


def test_a_terminal_gets_panels_and_anything_else_lines() -> None:
    assert isinstance(make_view(Console(file=io.StringIO(), force_terminal=True)), LiveView)
    assert isinstance(make_view(Console(file=io.StringIO())), PlainView)


def test_panels_are_drawn_on_a_terminal_and_remember_the_flagged_rate() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=40, color_system=None)
    with make_view(console) as view:
        for second in range(4):
            view.update(replace(SNAPSHOT, elapsed_s=float(second), flagged_ratio=second / 10))
            view.update(replace(SNAPSHOT, elapsed_s=second + 0.5, flagged_ratio=0.9))  # within the same second
    assert isinstance(console.file, io.StringIO)
    assert "▁▃▆█ " in console.file.getvalue()
    assert "90.0 % lately, at most 30.0 %" in console.file.getvalue()


def test_lines_come_every_few_seconds_and_with_every_swap() -> None:
    console = Console(file=io.StringIO(), width=60)
    with PlainView(console, every_s=3.0) as view:
        view.update(replace(BEFORE_THE_FIRST_MODEL, elapsed_s=0.0))
        view.update(replace(BEFORE_THE_FIRST_MODEL, elapsed_s=2.9))
        view.update(replace(SNAPSHOT, elapsed_s=2.95, swaps=SNAPSHOT.swaps[:1]))
        view.update(replace(SNAPSHOT, elapsed_s=3.0))
    assert isinstance(console.file, io.StringIO)
    first, swap_1, swap_2, last = console.file.getvalue().splitlines()
    assert "no model yet; trainer waiting: 420 of 2000" in first
    assert "version 1 (identity) is live; trained because: first model" in swap_1
    assert "version 2 (goad) is live" in swap_2
    assert last == line(replace(SNAPSHOT, elapsed_s=3.0))
    assert "flagged 3.4 %, dead letters 42, lag 78; version 2 (goad); trainer training: 15,000" in last
    assert last.endswith("120/512")
