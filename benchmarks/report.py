"""Tables from records, and what is written of them: a summary in JSON, a page in Markdown, pictures in PNG."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A title, a head, rows of finished text, and notes that say what the reader must know."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: row {list(row)} has {len(row)} cells; needed: {len(self.columns)}"
                )


@dataclass(frozen=True)
class Summary:
    """One run of one command: its tables and pictures, and all that the figures depend on."""

    name: str
    title: str
    command: str
    started: str
    finished: str
    wall_s: float
    commit: str
    code: str
    machine: Mapping[str, Any]
    tables: Sequence[Table]
    images: Sequence[str] = ()
    notes: Sequence[str] = ()
    records: Sequence[Record] = field(default_factory=tuple)


def mean(values: Iterable[float]) -> float:
    """Return the mean; NaN of nothing."""
    listed = list(values)
    return float(np.mean(listed)) if listed else math.nan


def deviation(values: Iterable[float]) -> float:
    """Return the standard deviation of a sample; NaN of fewer than two."""
    listed = list(values)
    return float(np.std(listed, ddof=1)) if len(listed) > 1 else math.nan


def number(value: float | None, n_digits: int = 3) -> str:
    """Return a figure as text, ``-`` for what is not known."""
    return "-" if value is None or math.isnan(value) else f"{value:.{n_digits}f}"


def percent(values: Sequence[float]) -> str:
    """Return mean ± deviation of fractions, in percent."""
    if not values:
        return "-"
    spread = deviation(values)
    return f"{100 * mean(values):.1f}" + ("" if math.isnan(spread) else f" ± {100 * spread:.1f}")


def good(records: Iterable[Record], **fields: Any) -> list[Record]:
    """Return the records of these fields that hold figures."""
    return [r for r in records if "error" not in r and all(r.get(name) == value for name, value in fields.items())]


def values(records: Iterable[Record], name: str, **fields: Any) -> list[float]:
    """Return one figure of the records of these fields."""
    return [record[name] for record in good(records, **fields) if name in record]


def failures(records: Iterable[Record]) -> list[str]:
    """Return a note for each method and set that failed: a figure that is missing must not go unnoticed."""
    failed: dict[tuple[str, str, str], int] = {}
    for record in records:
        if "error" in record:
            what = (record["method"], record["dataset"], record["error"])
            failed[what] = failed.get(what, 0) + 1
    return [
        f"{method} failed on {dataset} ({count} times): {error}" for (method, dataset, error), count in failed.items()
    ]


def mean_ranks(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return each method's mean rank over the sets; the highest score is rank 1, equal scores share their mean rank.

    Parameters
    ----------
    scores
        Set → method → score. Sets that lack a method which another has are left out: ranks among fewer flatter.

    Examples
    --------
    >>> mean_ranks({"a": {"x": 0.9, "y": 0.9, "z": 0.1}, "b": {"x": 0.2, "y": 0.8, "z": 0.5}})
    {'x': 2.25, 'y': 1.25, 'z': 2.5}
    """
    methods = list(dict.fromkeys(method for of_set in scores.values() for method in of_set))
    complete = [of_set for of_set in scores.values() if all(method in of_set for method in methods)]
    ranks = [rankdata([-of_set[method] for method in methods]) for of_set in complete]
    if not ranks:
        return dict.fromkeys(methods, math.nan)
    return {method: float(rank) for method, rank in zip(methods, np.mean(ranks, axis=0), strict=True)}


def markdown(table: Table, level: int = 3) -> str:
    """Return a table as Markdown."""
    head = [f"{'#' * level} {table.title}", ""]
    body = [_line(table.columns), _line(["---"] * len(table.columns)), *map(_line, table.rows)]
    notes = ["", *(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n".join([*head, *body, *notes]) + "\n"


def page(summary: Summary, *, level: int = 1, image_folder: str = "") -> str:
    """Return a run as Markdown, with its command, machine and time."""
    parts = [f"{'#' * level} {summary.title}", "", *provenance(summary), ""]
    parts += [f"![{summary.title}]({image_folder}{image})\n" for image in summary.images]
    parts += [markdown(table, level + 1) for table in summary.tables]
    return "\n".join(parts).rstrip() + "\n"


def provenance(summary: Summary) -> list[str]:
    """Return what the figures of a run depend on, as lines of Markdown."""
    facts = summary.machine
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    units_s = sum(record.get("wall_s", 0.0) for record in summary.records)
    lines = [
        f"- Command: `{summary.command}`",
        f"- Machine: {facts['cpu']}, {facts['n_cores']} cores, of which {facts['n_threads']} used; {facts['system']}; "
        f"Python {facts['python']}; {versions}",
        f"- Finished {summary.finished}, commit {summary.commit}; this call took {summary.wall_s:.0f} s"
        + (f", and the units in these tables {units_s:.0f} s when they ran" if summary.records else ""),
    ]
    other = sorted({r["commit"] for r in summary.records if r.get("commit", summary.commit) != summary.commit})
    if other:
        lines.append(
            f"- **Some figures are of other commits**: {', '.join(other)}; `--fresh` or `--again` measures anew"
        )
    n_stale = sum(r.get("code", summary.code) != summary.code for r in summary.records)
    if n_stale:
        lines.append(f"- **{n_stale} of {len(summary.records)} figures are of another state of `models/`**")
    others = {json.dumps(r["machine"], sort_keys=True) for r in summary.records if "machine" in r}
    if len(others) > 1:
        lines.append(
            f"- **The figures are of {len(others)} different machines or library versions**: do not compare times"
        )
    return [*lines, *(f"- {note}" for note in summary.notes)]


def write(summary: Summary, folder: Path) -> None:
    """Write ``<name>.json`` and ``<name>.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{summary.name}.json").write_text(
        json.dumps(asdict(summary), indent=1, default=list) + "\n", encoding="utf-8"
    )
    (folder / f"{summary.name}.md").write_text(page(summary), encoding="utf-8")


def read(path: Path) -> Summary | None:
    """Return the run that :func:`write` wrote, or None if the file is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Summary(**{**content, "tables": [Table(**table) for table in content["tables"]]})
    except (ValueError, KeyError, TypeError):
        return None


def show(table: Table) -> None:
    """Print a table to the terminal."""
    from rich.console import Console
    from rich.table import Table as RichTable

    # Into a file or a pipe, rows are wide rather than cut: what is printed must be readable by others.
    console = Console() if Console().is_terminal else Console(width=200)
    drawn = RichTable(title=table.title, title_justify="left")
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if index == 0 else "right")
    for row in table.rows:
        drawn.add_row(*row)
    console.print(drawn)
    for note in table.notes:
        console.print(f"  {note}", markup=False)


def plot_lines(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    *,
    x_label: str,
    y_label: str,
    title: str,
) -> None:
    """Draw lines through points: panel → line → (x, y)."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(1.5 + 5.0 * len(panels), 4.6), squeeze=False)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    colours = {name: plt.get_cmap("tab20")(index % 20) for index, name in enumerate(names)}
    for axis, (panel, lines) in zip(axes[0], panels.items(), strict=True):
        for name, points in lines.items():
            style = "--" if "paper" in name else "-"
            axis.plot(*zip(*points, strict=True), style, marker="o", markersize=4, color=colours[name], label=name)
        axis.set(title=panel, xlabel=x_label, ylabel=y_label)
        axis.grid(alpha=0.3)
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.suptitle(title)
    figure.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def plot_bars(path: Path, panels: Mapping[str, Mapping[str, float]], *, title: str) -> None:
    """Draw a panel of bars each: panel → bar → value, the highest on top."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.6), squeeze=False)
    for axis, (panel, bars) in zip(axes[0], panels.items(), strict=True):
        ordered = sorted((bar for bar in bars.items() if not math.isnan(bar[1])), key=lambda bar: bar[1])
        axis.barh([name for name, _ in ordered], [value for _, value in ordered], color="#4878a8")
        for index, (_, value) in enumerate(ordered):
            axis.text(value, index, f" {value:.3f}", va="center", fontsize=8)
        axis.set(title=panel)
        axis.margins(x=0.15)
    figure.suptitle(title)
    figure.tight_layout()
    _save(figure, path)


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    _pyplot().close(figure)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
