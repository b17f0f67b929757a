"""What every command shares: the settings file, errors in a line with their exit code, signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from consumers.errors import ConsumersError
from srr_stream.errors import NoDeadLetter, NoHeatMap, NotEnoughRecords, RegistryError, SettingsError, SrrStreamError

if TYPE_CHECKING:
    from srr_stream.settings import Settings

EXIT_SETTINGS = 2
EXIT_OUTSIDE = 3

config_option = click.option(
    "-c",
    "--config",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help="Settings file (YAML). SRR__SECTION__KEY in the environment goes over it.",
)


def load(path: Path) -> Settings:
    """Read and check a settings file."""
    from srr_stream.loading import load_settings

    return load_settings(path)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Say an expected error in a line and exit with its code; a defect keeps its traceback."""
    try:
        yield
    except SettingsError as error:
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        sys.exit(EXIT_SETTINGS)
    except (ConsumersError, RegistryError, NotEnoughRecords, NoHeatMap, NoDeadLetter, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_OUTSIDE)
    except SrrStreamError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


def plain(text: str) -> str:
    """Return a text that came with a record as a line that a terminal can be given: it must not do what that says."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


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
