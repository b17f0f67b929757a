"""Verdicts out of the scores topic, in columns, and a picture of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from consumers.logs import Log
from consumers.windows import latest
from srr_stream.plots import Swap, draw_severity_over_time, draw_share, require_matplotlib

_TOLD_EVERY = 1000
_LEAST_UNITS = 3
"""An axis of two days is one of 48 hours."""


@dataclass(frozen=True)
class VerdictColumns:
    """Verdicts in the order of their time, n of them."""

    time_ms: NDArray[np.int64]
    """The record's own, ``(n,)``."""
    severity: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    version: NDArray[np.int64]
    n_malformed: int
    """Entries of the topic that are no verdict."""

    @property
    def flagged_ratio(self) -> float | None:
        """None if there is no verdict."""
        return float(self.flagged.mean()) if len(self.flagged) else None

    def swaps(self) -> list[tuple[int, int]]:
        """Return time in ms and version of the first verdict of each version, in the order of the time."""
        versions, first = np.unique(self.version, return_index=True)
        order = np.argsort(first)
        return [(int(self.time_ms[first[i]]), int(versions[i])) for i in order.tolist()]


def read_verdicts(
    log: Log, *, since_ms: int | None = None, last: int | None = None, on_read: Callable[[int], None] = lambda n: None
) -> VerdictColumns:
    """Return what a scores topic holds now, or a part of it.

    Parameters
    ----------
    since_ms
        By the time at which the verdicts were published.
    last
        The newest so many of that.

    Raises
    ------
    ConsumersError
        What the log raises.
    """
    ends = dict(log.ends())
    begins = {position: min(begin, ends.get(position, begin)) for position, begin in log.beginnings().items()}
    begins = {position: begins[position] for position in ends}
    if since_ms is not None:
        begins |= {p: min(max(begins[p], at), ends[p]) for p, at in log.offset_at(since_ms).items() if p in ends}
    n_all = sum(ends.values()) - sum(begins.values())
    rows: list[tuple[int, float, bool, int]] = []
    n_malformed = 0
    for n, value in enumerate(_values(log, latest(begins, ends, n_all if last is None else last)), 1):
        row = _row(value)
        if row is None:
            n_malformed += 1
        else:
            rows.append(row)
        if n % _TOLD_EVERY == 0:
            on_read(n)
    rows.sort(key=lambda row: row[0])
    time_ms, severity, flagged, version = zip(*rows, strict=True) if rows else ((), (), (), ())
    return VerdictColumns(
        np.array(time_ms, dtype=np.int64),
        np.array(severity, dtype=np.float64),
        np.array(flagged, dtype=np.bool_),
        np.array(version, dtype=np.int64),
        n_malformed,
    )


def plot_verdicts(path: Path, verdicts: VerdictColumns, names: Mapping[int, str], *, title: str) -> None:
    """Draw flagged share and severity over time, swaps marked, and write it as a PNG.

    Parameters
    ----------
    verdicts
        At least one.
    names
        Version → what is written beside its line.

    Raises
    ------
    LibraryMissing
        If matplotlib is not installed.
    OSError
        If the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    axis, label = time_axis(verdicts.time_ms)
    at_of = dict(zip(verdicts.time_ms.tolist(), axis.tolist(), strict=True))
    swaps = [Swap(at_of[time_ms], names.get(version, f"v{version}")) for time_ms, version in verdicts.swaps()]
    figure = Figure(figsize=(10, 7), layout="constrained")
    share, severity = figure.subplots(2, 1)
    figure.suptitle(title)
    draw_share(share, axis, verdicts.flagged, swaps, label=label)
    draw_severity_over_time(severity, axis, verdicts.severity, swaps, label=label)
    figure.savefig(path, format="png", dpi=120)


def time_axis(time_ms: NDArray[np.int64], *, is_real: bool = True) -> tuple[NDArray[np.float64], str]:
    """Return where records stand on the axis of time, and what it is: days, hours, minutes or seconds, or their number.

    Parameters
    ----------
    is_real
        Whether the times mean something; False, as where all are equal: it is the number of the record.
    """
    if not is_real or not len(time_ms) or int(time_ms.max()) == int(time_ms.min()):
        return np.arange(len(time_ms), dtype=np.float64), "record"
    since_s = (time_ms - int(time_ms.min())) / 1000.0
    units = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
    unit_s, name = next((unit for unit in units if since_s.max() >= _LEAST_UNITS * unit[0]), units[-1])
    return since_s / unit_s, f"{name} since the first record"


def _values(log: Log, ranges: Any) -> Iterator[bytes | None]:
    for offsets in ranges:
        for record in log.read(offsets):
            yield record.value


def _row(value: bytes | None) -> tuple[int, float, bool, int] | None:
    """Return time, severity, flag and version of a verdict; None if it is none."""
    try:
        body = orjson.loads(value or b"")
        time_ms = round(datetime.fromisoformat(body["time"]).timestamp() * 1000)
        severity, flagged, version = body["severity"], body["flagged"], body["version"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(severity, int | float) or not isinstance(flagged, bool) or type(version) is not int:
        return None
    return time_ms, float(severity), flagged, version
