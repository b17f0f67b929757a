"""What every command shares: the settings file, errors in a line with their exit code, signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from consumers.errors import ConsumersError
from srr_stream.errors import (
    NoDeadLetter,
    NoHeatMap,
    NoLabelTopic,
    NoModel,
    NoRecord,
    NotEnoughRecords,
    RegistryError,
    SettingsError,
    SrrStreamError,
)

if TYPE_CHECKING:
    from srr_stream.reload import Reloads
    from srr_stream.settings import Settings

EXIT_SETTINGS = 2
EXIT_OUTSIDE = 3
_OUTSIDE = (NoDeadLetter, NoHeatMap, NoLabelTopic, NoModel, NoRecord, NotEnoughRecords)

config_option = click.option(
    "-c",
    "--config",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help="Settings file (YAML). SRR__SECTION__KEY in the environment goes over it.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")

_REDRAW_S = 0.2
_LINE_S = 10.0
"""Where there is no terminal to draw on, progress is a line so often."""


watch_option = click.option(
    "--watch", "is_watched", is_flag=True, help="Read the settings file again when it changes, as SIGHUP does at once."
)


def load(path: Path, *, role: str | None = None) -> Settings:
    """Read and check a settings file, and log as it says from now on, as `role` if one is given."""
    from srr_stream.assembly import log_as_set
    from srr_stream.loading import load_settings

    settings = load_settings(path)
    log_as_set(settings, role=role)
    return settings


def reload_on_signals(path: Path, *, is_watched: bool) -> Reloads:
    """Return what says when to read the settings file again: upon SIGHUP, and when it changes if it is watched."""
    from srr_stream.reload import Reloads

    reloads = Reloads(path, is_watched=is_watched)
    signal.signal(signal.SIGHUP, reloads.ask)
    return reloads


@contextmanager
def clear_errors() -> Iterator[None]:
    """Say an expected error in a line and exit with its code; a defect keeps its traceback."""
    try:
        yield
    except SettingsError as error:
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        sys.exit(EXIT_SETTINGS)
    except (ConsumersError, RegistryError, OSError, *_OUTSIDE) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_OUTSIDE)
    except SrrStreamError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


def plain(text: str) -> str:
    """Return a text that came with a record as a line that a terminal can be given: it must not do what that says."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def has_colour(stream: TextIO) -> bool:
    """Return whether to colour what goes to a stream: only on a terminal, and not where NO_COLOR is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str, stream: TextIO, **style: Any) -> str:
    """Return a text in click's `style`, as it is where there shall be no colour; say it with ``color=True``."""
    return click.style(text, **style) if has_colour(stream) else text


class Progress:
    """Tell on standard error how far something is, how fast it goes and how long it will take.

    On a terminal one line is drawn anew; elsewhere there is a line every ten seconds.

    Parameters
    ----------
    what
        The verb, such as ``scored``.
    total
        How many there will be; None: unknown, then nothing is said of the time left.
    clock
        Seconds.

    Examples
    --------
    >>> times = iter([0.0, 30.0])
    >>> import sys
    >>> with Progress("scored", 3000, clock=lambda: next(times), stream=sys.stdout) as progress:
    ...     progress.update(1000)
    scored 1,000 of 3,000, 33/s, 60 s left
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        stream: TextIO | None = None,
    ) -> None:
        self._what = what
        self._total = total
        self._clock = clock
        self._stream = sys.stderr if stream is None else stream
        self._is_drawn = self._stream.isatty()
        self._started = self._told = clock()
        self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def update(self, n: int, note: str = "") -> None:
        """Tell that `n` are done by now, if it is time to tell; `note` goes behind."""
        now = self._clock()
        if now - self._told < (_REDRAW_S if self._is_drawn else _LINE_S):
            return
        self._told = now
        text = plain(progress_text(self._what, n, self._total, now - self._started) + (f", {note}" if note else ""))
        if self._is_drawn:
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def clear(self) -> None:
        """Take the line off the terminal, so that something else can be written there; twice is fine."""
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0


def progress_text(what: str, n: int, total: int | None, seconds: float) -> str:
    """Say how far something is after so many seconds.

    Examples
    --------
    >>> progress_text("scored", 500, 61_850, 2.0)
    'scored 500 of 61,850, 250/s, 4 min left'
    """
    parts = [f"{what} {n:,}" if total is None else f"{what} {n:,} of {total:,}"]
    if n and seconds > 0:
        rate = n / seconds
        parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s")
        if total is not None:
            left = max(0, total - n) / rate
            parts.append(f"{left:.0f} s left" if left < 120 else f"{left / 60:.0f} min left")
    return ", ".join(parts)


def stop_on_signals() -> Callable[[], bool]:
    """Return whether SIGTERM or SIGINT came; a second one exits at once."""
    stop = threading.Event()

    def note(number: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    return stop.is_set
