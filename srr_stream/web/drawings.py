"""Where things stand in the page's drawings: the timeline's, contributions', votes'. Pure arithmetic, no markup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from srr_stream.web.views import HistoryPoint, HistoryView, Neighbour, Reason
from srr_stream.web.words import count, heat, severity, value
from srr_stream.wording import expected_text, number_text, percent

_WIDTH, _HEIGHT = 960.0, 330.0
_LEFT, _RIGHT = 44.0, 956.0
_SEVERITY_TOP, _SEVERITY_BOTTOM = 30.0, 178.0
_SHARE_TOP, _BOTTOM = 218.0, 298.0
_N_BINS = 120
_LEAST_SCALE = 2.0
"""Severity of the axis' end, at least: 1.0, the boundary, is never at its rim."""
_NEAR_MARKS = 34.0
"""Marks nearer than this would write over each other."""
_N_ROWS = 4
_TICKS_S = (60, 300, 600, 900, 1800, 3600, 7200)


@dataclass(frozen=True)
class Tick:
    """A line of an axis with its text."""

    at: float
    text: str
    is_limit: bool = False


@dataclass(frozen=True)
class Bin:
    """Some time of the stream: its figures, and where they are drawn."""

    start: datetime
    stop: datetime
    n: int
    n_flagged: int
    max_severity: float | None
    version: int | None
    """The last one that scored in it."""
    x: float
    width: float
    stem: str
    """The path of the severity's line; empty: nothing was scored."""
    heat: int
    href: str
    """To the records that were flagged then."""

    @property
    def ratio(self) -> float:
        """Share of the records that was flagged."""
        return self.n_flagged / self.n if self.n else 0.0

    @property
    def title(self) -> str:
        """The bin in words."""
        when = f"{self.start:%H:%M:%S} to {self.stop:%H:%M:%S}"
        if self.max_severity is None:
            return f"{when}: nothing scored"
        flagged = f"{count(self.n_flagged)} of {count(self.n)} flagged ({percent(self.ratio)})"
        return f"{when}: {flagged}, highest severity {severity(self.max_severity)}"


@dataclass(frozen=True)
class Mark:
    """A moment that is marked."""

    x: float
    text: str
    row: int = 0


@dataclass(frozen=True)
class Change:
    """A swap or a training, in words."""

    at: datetime
    what: str
    why: str


@dataclass(frozen=True)
class Timeline:
    """Everything of the drawing."""

    bins: tuple[Bin, ...]
    bin_words: str
    severity_ticks: tuple[Tick, ...]
    share_ticks: tuple[Tick, ...]
    time_ticks: tuple[Tick, ...]
    share_paths: tuple[str, ...]
    swaps: tuple[Mark, ...]
    trainings: tuple[Mark, ...]
    width: float = _WIDTH
    height: float = _HEIGHT
    left: float = _LEFT
    right: float = _RIGHT
    share_top: float = _SHARE_TOP
    bottom: float = _BOTTOM


def timeline(history: HistoryView, *, now: float, span_s: float) -> Timeline | None:
    """Draw the last `span_s` seconds; None if nothing was scored in them."""
    step = max(history.bucket_s, math.ceil(span_s / _N_BINS / history.bucket_s) * history.bucket_s)
    stop = math.ceil((now + 1e-9) / step) * step
    start = stop - math.ceil(span_s / step) * step
    began = history.points[0].at if history.points else start
    start = max(start, min(began // step * step, stop - step * _N_BINS // 4))
    groups = _grouped(history.points, start, stop, step)
    if not groups:
        return None
    severe = [p.max_severity for group in groups.values() for p in group if p.max_severity is not None]
    top = _nice_top(max([_LEAST_SCALE, *filter(math.isfinite, severe)]))
    bins = tuple(_bin(group, at, start, stop, step, top) for at, group in sorted(groups.items()))
    top_share = _nice_top(max(0.01, *(bin.ratio for bin in bins)) if bins else 0.01)

    def x_of(at: float) -> float:
        return _x(at, start, stop)

    severity_steps = _steps(top)
    return Timeline(
        bins=bins,
        bin_words=_span_words(step),
        severity_ticks=tuple(
            Tick(_severity_y(v, top), f"{v:g}", is_limit=v == 1.0)
            for v in sorted({*severity_steps, 1.0})
            if v == 1.0 or abs(v - 1.0) > 0.12 * top
        ),
        share_ticks=tuple(Tick(_share_y(v, top_share), f"{100 * v:g} %") for v in (0.0, top_share / 2, top_share)),
        time_ticks=_time_ticks(start, stop),
        share_paths=_share_paths(bins, top_share),
        swaps=_marks([(swap.at, f"v{swap.version}") for swap in history.swaps if start <= swap.at < stop], x_of),
        trainings=_marks(
            [
                (training.at, f"v{training.version} trained: {training.reason}")
                for training in history.trainings
                if start <= training.at < stop
            ],
            x_of,
        ),
    )


def changes(history: HistoryView, *, since: float) -> list[Change]:
    """Return what changed in models, newest first."""
    found = [(swap.at, Change(_utc(swap.at), f"v{swap.version} went live", "")) for swap in history.swaps]
    for training in history.trainings:
        outcome = {True: "passed the gate", False: "rejected by the gate", None: ""}[training.passed]
        why = "; ".join(filter(None, (training.reason, outcome)))
        found.append((training.at, Change(_utc(training.at), f"v{training.version} was trained", why)))
    return [change for at, change in sorted(found, key=lambda pair: -pair[0]) if at >= since]


def _grouped(points: Sequence[HistoryPoint], start: float, stop: float, step: float) -> dict[float, list[HistoryPoint]]:
    groups: dict[float, list[HistoryPoint]] = {}
    for point in points:
        if start <= point.at < stop:
            groups.setdefault(start + (point.at - start) // step * step, []).append(point)
    return groups


def _bin(group: Sequence[HistoryPoint], at: float, start: float, stop: float, step: float, top: float) -> Bin:
    severe = [point.max_severity for point in group if point.max_severity is not None]
    most = max(severe) if severe else None
    x, width = _x(at, start, stop), (_RIGHT - _LEFT) * step / (stop - start)
    begin, end = _utc(at), _utc(at + step)
    stem = ""
    if most is not None and most > 0:
        stem = f"M{x + width / 2:.1f} {_SEVERITY_BOTTOM:g}V{_severity_y(most, top):.1f}"
    return Bin(
        start=begin,
        stop=end,
        n=sum(point.n for point in group),
        n_flagged=sum(point.n_flagged for point in group),
        max_severity=most,
        version=next((point.version for point in reversed(group) if point.version is not None), None),
        x=round(x, 1),
        width=round(width, 2),
        stem=stem,
        heat=0 if most is None or most < 1.0 else heat(most),
        href="/?"
        + urlencode({"label": "any", "since": f"{begin:%Y-%m-%dT%H:%M:%S}", "until": f"{end:%Y-%m-%dT%H:%M:%S}"}),
    )


def _share_paths(bins: Sequence[Bin], top: float) -> tuple[str, ...]:
    """Return an outline of every unbroken run of bins."""
    runs: list[list[Bin]] = []
    for bin in bins:
        if runs and runs[-1][-1].stop == bin.start:
            runs[-1].append(bin)
        else:
            runs.append([bin])
    paths = []
    for run in runs:
        steps = "".join(f"V{_share_y(bin.ratio, top):.1f}H{bin.x + bin.width:.1f}" for bin in run)
        paths.append(f"M{run[0].x:.1f} {_BOTTOM:g}{steps}V{_BOTTOM:g}Z")
    return tuple(paths)


def _marks(moments: Sequence[tuple[float, str]], x_of: Any) -> tuple[Mark, ...]:
    marks: list[Mark] = []
    for at, text in sorted(moments):
        x = round(float(x_of(at)), 1)
        is_near = bool(marks) and x - marks[-1].x < _NEAR_MARKS
        marks.append(Mark(x, text, (marks[-1].row + 1) % _N_ROWS if is_near else 0))
    return tuple(marks)


def _time_ticks(start: float, stop: float) -> tuple[Tick, ...]:
    step = next((s for s in _TICKS_S if (stop - start) / s <= 8), 4 * 3600)
    first = math.ceil(start / step) * step
    moments = range(int(first), int(stop) + 1, step)
    return tuple(
        Tick(round(_x(at, start, stop), 1), f"{_utc(at):%H:%M}")
        for at in moments
        if _LEFT + 14 <= _x(at, start, stop) <= _RIGHT - 14
    )


def _x(at: float, start: float, stop: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * (at - start) / (stop - start)


def _severity_y(v: float, top: float) -> float:
    return round(_SEVERITY_BOTTOM - (_SEVERITY_BOTTOM - _SEVERITY_TOP) * min(v, top) / top, 1)


def _share_y(v: float, top: float) -> float:
    return round(_BOTTOM - (_BOTTOM - _SHARE_TOP) * min(v, top) / top, 1)


def _nice_top(greatest: float) -> float:
    """Return the next round number, whose half is round as well.

    Examples
    --------
    >>> _nice_top(3.2), _nice_top(0.034), _nice_top(10.0)
    (4.0, 0.04, 10.0)
    """
    power = 10.0 ** math.floor(math.log10(greatest))
    return float(f"{next(m * power for m in (1, 2, 3, 4, 5, 6, 8, 10) if m * power >= greatest * (1 - 1e-9)):.3g}")


def _steps(top: float) -> list[float]:
    return [0.0, top / 2, top]


def _span_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:g} min"


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


# --- one record


@dataclass(frozen=True)
class Bar:
    """A field's contribution: its figures in words, and where its bar stands, 0 to 100."""

    field: str
    part: str
    observed: str
    expected: str
    x: float
    width: float
    is_less: bool
    """It makes the record more usual."""
    is_top: bool


def contribution_bars(contributions: Sequence[Reason]) -> list[Bar]:
    """Return the bars of a record's fields, all on one scale."""
    sizes = [reason.contribution for reason in contributions if math.isfinite(reason.contribution)]
    most, least = max([0.0, *sizes]), min([0.0, *sizes])
    scale = (most - least) or 1.0
    zero = -least / scale
    bars = []
    for rank, reason in enumerate(contributions):
        part = reason.contribution if math.isfinite(reason.contribution) else 0.0
        share = abs(part) / scale
        bars.append(
            Bar(
                field=reason.field,
                part=("+" if reason.contribution > 0 else "")
                + number_text(round(reason.contribution, 1)).replace("-", "−"),
                observed=value(reason.observed),
                expected="–" if reason.expected is None else expected_text(reason),
                x=round(100 * (zero - share if part < 0 else zero), 2),
                width=round(max(100 * share, 0.6), 2),
                is_less=part < 0,
                is_top=rank < 3 and part > 0.2 * most,
            )
        )
    return bars


@dataclass(frozen=True)
class ComparedRow:
    """A field of a record beside the same field of its nearest normal records."""

    field: str
    value: str
    differs: bool
    """It is not among theirs, or as a number not between them."""
    others: tuple[tuple[str, bool], ...]
    """Value, and whether it is the record's own."""


def compared(record: object, nearest: Sequence[Neighbour], first: Sequence[str] = ()) -> tuple[list[ComparedRow], int]:
    """Compare a record with its nearest normal ones, field by field.

    Parameters
    ----------
    first
        Fields that come first, in this order.

    Returns
    -------
    rows, n_equal
        Fields that are not equal in all of them, and how many are.
    """
    if not isinstance(record, Mapping) or not nearest:
        return [], 0
    own, theirs = _flat(record), [_flat(near.record) if isinstance(near.record, Mapping) else {} for near in nearest]
    names = dict.fromkeys([*(name for name in first if name in own), *own, *(name for flat in theirs for name in flat)])
    rows, n_equal = [], 0
    for name in names:
        mine, others = own.get(name), [flat.get(name) for flat in theirs]
        if all(_is_same(mine, other) for other in others):
            n_equal += 1
            continue
        rows.append(
            ComparedRow(name, value(mine), _differs(mine, others), tuple((value(o), _is_same(mine, o)) for o in others))
        )
    return rows, n_equal


def _flat(record: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, inner in record.items():
        if isinstance(inner, Mapping):
            flat |= _flat(inner, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = inner
    return flat


def _is_number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _is_same(mine: object, other: object) -> bool:
    if isinstance(mine, float) and isinstance(other, float) and math.isnan(mine) and math.isnan(other):
        return True
    return mine == other and isinstance(mine, bool) == isinstance(other, bool)


def _differs(mine: object, others: Sequence[object]) -> bool:
    numbers = [other for other in others if isinstance(other, int | float) and _is_number(other)]
    if isinstance(mine, int | float) and _is_number(mine) and numbers:
        return not min(numbers) <= mine <= max(numbers)
    return not any(_is_same(mine, other) for other in others)


@dataclass(frozen=True)
class VoteRow:
    """How many rows of a window so many members rejected."""

    text: str
    n: int
    ratio: float
    width: float
    """0 to 100."""
    is_out: bool
    """So many votes exclude a row."""


def vote_rows(rows_by_votes: Sequence[int], n_excluded: int) -> list[VoteRow]:
    """Return the bars of a refinement's votes; their lengths go by the square root, so that few rows are seen too."""
    n_rows, most = sum(rows_by_votes), max([*rows_by_votes, 1])
    n_members = len(rows_by_votes) - 1
    rows = []
    for votes, n in enumerate(rows_by_votes):
        text = "none" if votes == 0 else f"all {n_members}" if votes == n_members else f"{votes} of {n_members}"
        is_out = votes > 0 and sum(rows_by_votes[votes:]) <= n_excluded
        rows.append(VoteRow(text, n, n / n_rows if n_rows else 0.0, round(100 * math.sqrt(n / most), 2), is_out))
    return rows
