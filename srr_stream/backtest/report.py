"""The report of a backtest: one HTML file that needs nothing else, readable in the light and in the dark."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from srr_stream.backtest import Result
from srr_stream.backtest.figures import Figures, flagged_records
from srr_stream.plots import Swap, draw_severities, draw_severity_over_time, draw_share, require_matplotlib
from srr_stream.verdict_log import time_axis
from srr_stream.wording import number_text, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_FLAGGED = 100
"""Records that the report shows, the most severe ones."""
_INK = "#010203"
"""Stands for the colour of the page's text, until the picture is in the page."""


def make_report(
    result: Result, figures: Figures, labels: NDArray[np.int8] | None = None, *, remarks: Sequence[str] = ()
) -> str:
    """Return the report as HTML, with its pictures in it.

    What came with the records is text in it and never markup; nothing is fetched, and no script runs.

    Raises
    ------
    LibraryMissing
        If matplotlib is not installed.
    """
    import jinja2

    require_matplotlib()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "percent": percent,
        "score": lambda value: "-" if value is None else f"{value:.3f}",
        "number": lambda value: "-" if value is None else number_text(value),
    }
    source = files("srr_stream.backtest").joinpath("report.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        figures=figures,
        n_dead=sum(figures.dead_lettered.values()),
        has_time=any(each.per_day is not None for each in figures.at_rates),
        over_time=_over_time(result),
        severities=_severities(result),
        flagged=flagged_records(result, labels, most=N_FLAGGED, by_severity=True),
        remarks=remarks,
    )


def _over_time(result: Result) -> str:
    from matplotlib.figure import Figure

    findings, rows = result.findings, np.flatnonzero(result.findings.is_scored)
    axis, label = time_axis(result.recording.time_ms, is_real=result.recording.supposed_rate is None)
    figure = Figure(figsize=(10, 7), layout="constrained")
    share, severity = figure.subplots(2, 1, height_ratios=(1, 1))
    if not len(rows):
        share.text(0.5, 0.5, "no verdicts", ha="center", va="center", transform=share.transAxes, color=_INK)
        return _svg(figure)
    last = len(axis) - 1
    swaps = [Swap(float(axis[min(took.at, last)]), f"v{took.version} {took.representation}") for took in result.took]
    draw_share(share, axis[rows], findings.flagged[rows], swaps, label=label, colour=_INK)
    draw_severity_over_time(severity, axis[rows], findings.severity[rows], swaps, label=label, colour=_INK)
    return _svg(figure)


def _severities(result: Result) -> str:
    from matplotlib.figure import Figure

    severity = result.findings.severity[result.findings.is_scored]
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    axes = figure.subplots()
    if len(severity):
        draw_severities(axes, severity, colour=_INK)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    """Return a figure as SVG, without ground, in the colour of the text around it."""
    import matplotlib as mpl

    for axes in figure.axes:
        axes.patch.set_alpha(0.0)
        axes.tick_params(colors=_INK, which="both")
        axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=10, color=_INK)
        axes.xaxis.label.set_color(_INK)
        axes.yaxis.label.set_color(_INK)
        for spine in axes.spines.values():
            spine.set_color(_INK)
        legend = axes.get_legend()
        if legend is not None:
            legend.get_frame().set_alpha(0.0)
            for text in legend.get_texts():
                text.set_color(_INK)
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "srr-stream"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")
