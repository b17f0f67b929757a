"""What happens now, for a person to watch: panels in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_BLOCKS = "▁▂▃▄▅▆▇█"
_BAR = 30
"""Characters of a bar, and of the history of the flagged rate."""
_HISTORY_EVERY_S = 1.0
_PRINT_EVERY_S = 3.0
_N_SWAPS = 6
"""Newest swaps that the panels show."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How things stand; ratios are 0 to 1, and None where nothing is known yet."""

    elapsed_s: float
    produced: int
    total: int
    """Records that will be produced in all."""
    scored: int
    dead_lettered: int
    records_per_s: float
    """Scored, lately."""
    flagged_ratio: float | None
    """Of the records scored lately."""
    lag: int
    """Records produced and neither scored nor dead-lettered."""
    window_size: int
    """Records that the first training has, of the `window_target` that it waits for."""
    window_target: int
    trainer_status: str
    training_step: int
    training_n_steps: int
    """0 if no training is under way."""
    excluded_ratio: float | None
    """Share of the window that refinement drops at the moment."""
    version: int | None
    """The live model; None: records wait for the first one."""
    representation: str | None
    swaps: tuple[tuple[float, int, str, str], ...] = ()
    """``(elapsed_s, version, representation, reason)``, oldest first."""


class View(Protocol):
    """Shows snapshots for as long as it is entered."""

    def update(self, snapshot: Snapshot) -> None:
        """Show how things stand now."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def make_view(console: Console) -> View:
    """Return panels if somebody sits before a terminal, lines if not."""
    return LiveView(console) if console.is_terminal else PlainView(console)


class LiveView:
    """Panels that stay in their place: the stream, the trainer, the models so far."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=8)
        self._rates: deque[float | None] = deque(maxlen=_BAR)
        self._next_rate_at_s = 0.0

    def update(self, snapshot: Snapshot) -> None:
        """Show how things stand now."""
        if snapshot.elapsed_s >= self._next_rate_at_s:
            self._rates.append(snapshot.flagged_ratio)
            self._next_rate_at_s = snapshot.elapsed_s + _HISTORY_EVERY_S
        self._live.update(render(snapshot, tuple(self._rates)))

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()


class PlainView:
    """A line every few seconds, and one for every swap."""

    def __init__(self, console: Console, *, every_s: float = _PRINT_EVERY_S) -> None:
        self._console = console
        self._every_s = every_s
        self._next_at_s = 0.0
        self._n_swaps = 0

    def update(self, snapshot: Snapshot) -> None:
        """Show how things stand now, if it is time or a model was swapped."""
        for at_s, version, representation, reason in snapshot.swaps[self._n_swaps :]:
            self._print(f"{at_s:6.1f} s  version {version} ({representation}) is live; trained because: {reason}")
        self._n_swaps = len(snapshot.swaps)
        if snapshot.elapsed_s >= self._next_at_s:
            self._print(line(snapshot))
            self._next_at_s = snapshot.elapsed_s + self._every_s

    def __enter__(self) -> PlainView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing is held."""

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


def render(snapshot: Snapshot, flagged_ratios: Sequence[float | None] = ()) -> RenderableType:
    """Return a snapshot as panels; `flagged_ratios` are the ones so far, oldest first."""
    title = f"srr-stream demo, {snapshot.elapsed_s:.0f} s"
    stream = Panel(_stream(snapshot, flagged_ratios), title=title, title_align="left", border_style="blue")
    trainer = Panel(_trainer(snapshot), title="trainer", title_align="left", border_style="green")
    models = Panel(_models(snapshot), title="models", title_align="left", border_style="magenta")
    return Group(stream, trainer, models)


def line(snapshot: Snapshot) -> str:
    """Return a snapshot as one line."""
    model = "no model yet" if snapshot.version is None else f"version {snapshot.version} ({snapshot.representation})"
    step = f" {snapshot.training_step}/{snapshot.training_n_steps}" if snapshot.training_n_steps else ""
    return (
        f"{snapshot.elapsed_s:6.1f} s  produced {snapshot.produced:,} of {snapshot.total:,}, "
        f"scored {snapshot.scored:,} ({snapshot.records_per_s:,.0f}/s), flagged {percent(snapshot.flagged_ratio)}, "
        f"dead letters {snapshot.dead_lettered:,}, lag {snapshot.lag:,}; {model}; "
        f"trainer {snapshot.trainer_status}{step}"
    )


def sparkline(ratios: Sequence[float | None]) -> str:
    """Return one block per ratio, the highest one full; a blank where there is none.

    Examples
    --------
    >>> sparkline([0.0, 0.05, None, 0.1])
    '▁▅ █'
    """
    top = max((ratio for ratio in ratios if ratio is not None), default=0.0) or 1.0
    return "".join(
        " " if ratio is None else _BLOCKS[min(int(ratio / top * len(_BLOCKS)), len(_BLOCKS) - 1)] for ratio in ratios
    )


def percent(ratio: float | None) -> str:
    """Return a share of 1 as people write it; a dash for None."""
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def _stream(snapshot: Snapshot, flagged_ratios: Sequence[float | None]) -> RenderableType:
    grid = _grid()
    grid.add_row("replayed", _bar(snapshot.produced, snapshot.total), f"{snapshot.produced:,} of {snapshot.total:,}")
    grid.add_row(
        "scored", _bar(snapshot.scored, snapshot.total), f"{snapshot.scored:,}, {snapshot.records_per_s:,.0f}/s"
    )
    top = max((ratio for ratio in flagged_ratios if ratio is not None), default=None)
    grid.add_row(
        "flagged",
        Text(sparkline(flagged_ratios), style="red"),
        f"{percent(snapshot.flagged_ratio)} lately, at most {percent(top)}",
    )
    grid.add_row("waiting", "", f"{snapshot.lag:,} records not yet scored")
    grid.add_row("dead letters", "", f"{snapshot.dead_lettered:,} malformed, kept aside with the reason")
    return grid


def _trainer(snapshot: Snapshot) -> RenderableType:
    grid = _grid()
    grid.add_row("now", "", Text(snapshot.trainer_status or "-"))
    if snapshot.version is None:
        window = f"{snapshot.window_size:,} of {snapshot.window_target:,} records for the first model"
        grid.add_row("window", _bar(snapshot.window_size, snapshot.window_target), window)
    if snapshot.training_n_steps:
        step = f"step {snapshot.training_step:,} of {snapshot.training_n_steps:,}"
        grid.add_row("training", _bar(snapshot.training_step, snapshot.training_n_steps), step)
    grid.add_row("excluded", "", f"{percent(snapshot.excluded_ratio)} of the window, as probable anomalies")
    return grid


def _models(snapshot: Snapshot) -> RenderableType:
    if snapshot.version is None:
        return Text("none yet: records wait in the log until the first one, then each gets its verdict")
    table = Table("live after", "version", "representation", "trained because", box=None, pad_edge=False)
    for at_s, version, representation, reason in snapshot.swaps[-_N_SWAPS:]:
        style = "bold" if version == snapshot.version else "dim"
        table.add_row(f"{at_s:.1f} s", str(version), representation, Text(reason), style=style)
    return table


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=12, style="bold")
    grid.add_column(width=_BAR)
    grid.add_column()
    return grid


def _bar(done: int, total: int) -> ProgressBar:
    return ProgressBar(total=max(total, 1), completed=min(done, total), width=_BAR)
