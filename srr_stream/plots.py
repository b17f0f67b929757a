"""Pictures of verdicts: the flagged share over time with the swaps, the severities over time, and how they spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consumers.errors import LibraryMissing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_BINS = 60
"""Slices of time over which the flagged share is averaged."""
_N_BARS, _MAX_SEVERITY = 80, 20.0
_MAX_DOTS = 5000
"""Flagged records that are drawn one by one: the most severe."""
_TICKS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
NORMAL_COLOUR, FLAGGED_COLOUR, SWAP_COLOUR = "#4c78a8", "#d1495b", "#555555"


class Swap(NamedTuple):
    """A model that took over."""

    at: float
    """On the axis of time."""
    name: str


def require_matplotlib() -> None:
    """Raise `LibraryMissing` unless matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise LibraryMissing("drawing needs matplotlib; pip install 'srr-stream[plots]'") from error


def draw_share(
    axes: Axes,
    at: NDArray[np.float64],
    flagged: NDArray[np.bool_],
    swaps: Sequence[Swap],
    *,
    label: str,
    colour: str = SWAP_COLOUR,
) -> None:
    """Draw flagged records per scored ones in slices of time.

    Parameters
    ----------
    at
        Where every verdict stands on the axis of time, ``(n,)``, n ≥ 1, finite.
    flagged
        ``(n,)``.
    label
        What the axis is.
    colour
        Of the lines and names of the swaps.
    """
    edges = _slices(at)
    n_scored, _ = np.histogram(at, edges)
    n_flagged, _ = np.histogram(at, edges, weights=flagged.astype(np.float64))
    ratio = np.divide(n_flagged, n_scored, out=np.full(N_BINS, np.nan), where=n_scored > 0)
    axes.stairs(100 * ratio, edges, color=FLAGGED_COLOUR, fill=True, alpha=0.35)
    axes.stairs(100 * ratio, edges, color=FLAGGED_COLOUR, linewidth=1.2)
    draw_swaps(axes, swaps, colour=colour)
    axes.set(xlabel=label, ylabel="flagged, % of scored", xlim=(edges[0], edges[-1]))
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])  # room for the names above the share
    axes.set_title("Flagged rate; dashed: a new model took over; a gap: nothing was scored", loc="left", fontsize=10)


def _slices(at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the edges of equal slices of time, ``(N_BINS + 1,)``."""
    first = float(at.min())
    return np.linspace(first, max(float(at.max()), first + 1e-3), N_BINS + 1)


def draw_swaps(axes: Axes, swaps: Sequence[Swap], *, colour: str = SWAP_COLOUR) -> None:
    """Draw a line and a name where a model took over."""
    for swap in swaps:
        axes.axvline(swap.at, color=colour, linewidth=1, linestyle="--")
        axes.annotate(
            swap.name,
            (swap.at, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, -4),
            textcoords="offset points",
            rotation=90,
            va="top",
            fontsize=8,
            color=colour,
        )


def draw_severity_over_time(
    axes: Axes,
    at: NDArray[np.float64],
    severity: NDArray[np.float64],
    swaps: Sequence[Swap],
    *,
    label: str,
    colour: str = SWAP_COLOUR,
) -> None:
    """Draw the median and the 99th percentile of the severity in slices of time, and every flagged record as a dot.

    Parameters
    ----------
    at, severity
        ``(n,)`` each, n ≥ 1, finite.
    """
    edges = _slices(at)
    place = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, N_BINS - 1)
    slices = [severity[place == i] for i in range(N_BINS)]
    for share, text, style in ((0.5, "median", "-"), (0.99, "99th percentile", ":")):
        values = [float(np.quantile(part, share)) if len(part) else np.nan for part in slices]
        axes.stairs(values, edges, color=NORMAL_COLOUR, linestyle=style, linewidth=1.2, baseline=None, label=text)
    flagged = np.flatnonzero(severity >= 1)
    flagged = flagged[np.argsort(-severity[flagged], kind="stable")[:_MAX_DOTS]]
    axes.scatter(at[flagged], severity[flagged], s=4, color=FLAGGED_COLOUR, alpha=0.6, label="flagged", linewidths=0)
    axes.axhline(1.0, color=colour, linewidth=1)
    for swap in swaps:
        axes.axvline(swap.at, color=colour, linewidth=1, linestyle="--")
    axes.set(xlabel=label, ylabel="severity", xlim=(edges[0], edges[-1]), yscale="symlog")
    axes.set_ylim(bottom=0)
    axes.set_yticks(_TICKS, list(map("{:g}".format, _TICKS)))
    axes.set_ylim(top=max(2.0, 1.1 * float(severity.max())))
    axes.set_title("Severity; 1 is the boundary for every model", loc="left", fontsize=10)
    axes.legend(loc="upper left", fontsize=8)


def draw_severities(axes: Axes, severity: NDArray[np.float64], *, colour: str = SWAP_COLOUR) -> None:
    """Draw how many records have which severity, ``(n,)``, flagged ones in their own colour."""
    greatest = min(max(2.0, float(np.quantile(severity, 0.999))), _MAX_SEVERITY)
    n_per_unit = round(_N_BARS / greatest)  # whole, so that the boundary lies between two bars
    edges = (np.arange(round(greatest * n_per_unit) + 1) / n_per_unit).tolist()
    shown = np.minimum(severity, edges[-1])
    axes.hist(shown[shown < 1], edges, color=NORMAL_COLOUR, label="normal")
    axes.hist(shown[shown >= 1], edges, color=FLAGGED_COLOUR, label="flagged")
    axes.axvline(1.0, color=colour, linewidth=1)
    axes.set(xlabel="severity (1 is the boundary for every model)", ylabel="records", yscale="log", xlim=(0, edges[-1]))
    axes.set_ylim(bottom=0.5)  # a single record shows
    axes.set_title("Severities of all records; the last bar holds everything beyond", loc="left", fontsize=10)
    axes.legend()
