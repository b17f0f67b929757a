"""Rounds in which every contestant runs once, in random order, and what they say: ratios within a round.

What else the machine does meets all contestants of a round alike, so a ratio within a round holds where a rate alone
would not.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import ours, report
from benchmarks.runner import OUT, commit, machine, version_of, whole

LIBRARIES = ("numpy", "scikit-learn", "torch", "kafka-python", "polars", "orjson", "msgspec", "river")


@dataclass(frozen=True)
class Claim:
    """A figure, what it is held against, and whether it is reached."""

    what: str
    """What is measured, as the row of a table begins."""
    value: float
    unit: str
    against: str
    """The peer or the limit, or what is asked if there is none."""
    target: float
    at_least: bool = True
    """Whether more is better."""
    spread: tuple[float, float] | None = None
    """Quartiles, where `value` is a median."""
    note: str = ""
    """Why it falls short, or what must be known to read it."""

    @property
    def is_met(self) -> bool:
        """Whether the target is reached."""
        return self.value >= self.target if self.at_least else self.value <= self.target

    def as_row(self) -> list[str]:
        """Return the cells of :data:`COLUMNS`."""
        spread = "" if self.spread is None else f" ({shown(self.spread[0])} to {shown(self.spread[1])})"
        asked = f"{'≥' if self.at_least else '≤'} {shown(self.target)} {self.unit}".strip()
        measured = f"{shown(self.value)} {self.unit}".strip() + spread
        return [self.what, self.against, measured, asked, "yes" if self.is_met else "**no**", self.note]


COLUMNS = ("what", "against", "measured (quartiles)", "asked", "reached", "remark")


def shown(value: float) -> str:
    """Return a figure with three digits that count."""
    if value and abs(value) < 1:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def parser(name: str, description: str | None, *, n_rounds: int, has_quick: bool = False) -> argparse.ArgumentParser:
    """Return the arguments that all commands share."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.speed {name}", description=description)
    made.add_argument(
        "--rounds", type=whole, default=n_rounds, help=f"How often each has its turn (default {n_rounds})."
    )
    if has_quick:
        made.add_argument("--quick", action="store_true", help="A run of seconds, without a broker.")
    made.add_argument("--out", type=Path, default=OUT, help=f"Write JSON, Markdown and PNG here (default {OUT}).")
    return made


def interleaved(
    contestants: Mapping[str, Callable[[], float]],
    *,
    n_rounds: int,
    seed: int = 0,
    n_warm_up: int = 1,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> dict[str, NDArray[np.float64]]:
    """Run every contestant once in each round, in random order, and return its figures, ``(n_rounds,)`` each.

    Parameters
    ----------
    contestants
        Name → what measures it once, and returns a figure such as records a second.
    n_warm_up
        Rounds before these that do not count.
    """
    rng = random.Random(seed)
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-n_warm_up, n_rounds):
        for name in rng.sample(list(contestants), len(contestants)):
            figure = contestants[name]()
            if number >= 0:
                figures[name].append(figure)
        if number >= 0:
            say(f"[{number + 1}/{n_rounds}] " + ", ".join(f"{name} {shown(f[-1])}" for name, f in figures.items()))
    return {name: np.array(values) for name, values in figures.items()}


def rate(work: Callable[[], object], n: int, *, least_s: float = 0.2) -> float:
    """Return how many of `n` are worked off a second, by as many calls as take `least_s` together."""
    n_calls, started = 0, time.perf_counter()
    while True:
        work()
        n_calls += 1
        seconds = time.perf_counter() - started
        if seconds >= least_s:
            return n * n_calls / seconds


def quartiles(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return low, middle, high


def medians(figures: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Return the median figure of every contestant."""
    return {name: float(np.median(values)) for name, values in figures.items()}


def ratio(
    what: str,
    ours_: NDArray[np.float64],
    theirs: NDArray[np.float64],
    against: str,
    target: float,
    *,
    at_least: bool = True,
    note: str = "",
) -> Claim:
    """Return the claim about the median of the ratios of ours to theirs, round by round."""
    low, middle, high = quartiles(ours_ / theirs)
    return Claim(what, middle, "×", against, target, at_least, (low, high), note)


def rates_table(title: str, figures: Mapping[str, NDArray[np.float64]], unit: str) -> report.Table:
    """Return a table of medians and quartiles."""
    rows = []
    for name, values in figures.items():
        low, middle, high = quartiles(values)
        rows.append([name, shown(middle), f"{shown(low)} to {shown(high)}", str(len(values))])
    return report.Table(title, ["", f"{unit}, median", "quartiles", "rounds"], rows)


class Run:
    """One call of a command: its clock, and the summary that it leaves."""

    def __init__(self, name: str, arguments: Sequence[str], *, out: Path = OUT, n_threads: int | None = None) -> None:
        self.name = f"speed-{name}"
        self._command = " ".join(["python -m benchmarks.speed", name, *_without_out(arguments)])
        self._out = out
        self._started, self._clock = datetime.now(UTC), time.perf_counter()
        facts = machine(n_threads or os.cpu_count() or 1)
        beside = {library: found for library in LIBRARIES if (found := version_of(library)) is not None}
        self._machine: dict[str, Any] = facts | {"versions": facts["versions"] | beside}

    def finish(
        self,
        title: str,
        claims: Sequence[Claim],
        tables: Sequence[report.Table],
        *,
        bars: Mapping[str, Mapping[str, float]] | None = None,
        images: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> int:
        """Print the claims and tables, and write them as JSON, Markdown and a picture of `bars`: panel → bar → value.

        `images` are names of pictures that lie in ``out`` already. Returns 0: a target that is missed is a finding, not
        a failure of the command.
        """
        drawn = list(images)
        if bars:
            report.plot_bars(self._out / f"{self.name}.png", bars, title=title)
            drawn.insert(0, f"{self.name}.png")
        held = report.Table("Against peers and limits", COLUMNS, [claim.as_row() for claim in claims])
        summary = report.Summary(
            name=self.name,
            title=title,
            command=self._command,
            started=self._started.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            wall_s=time.perf_counter() - self._clock,
            commit=commit(),
            code=ours.code_digest(),
            machine=self._machine,
            tables=[held, *tables] if claims else list(tables),
            images=drawn,
            notes=notes,
        )
        for table in summary.tables:
            report.show(table)
        report.write(summary, self._out)
        print(f"written: {self._out / self.name}.json, .md" + (", .png" if drawn else ""))
        return 0


def _without_out(arguments: Sequence[str]) -> list[str]:
    """Return arguments without the folder that is written to: it is the caller's, and changes no figure."""
    kept = list(arguments)
    if "--out" in kept:
        at = kept.index("--out")
        del kept[at : at + 2]
    return kept
