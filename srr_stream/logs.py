"""How the processes log: to standard error, for people on a terminal, one JSON object a line elsewhere.

Modules here take their logger from :func:`get_logger` and say the context beside the sentence, as key and value; those
of :mod:`consumers` and of the libraries log by :mod:`logging` as ever. All go through one handler, which also counts
what repeats itself instead of writing it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger, ProcessorFormatter

Format = Literal["auto", "console", "json"]

_MOST_MESSAGES = 1000
"""Different messages that are counted at a time; the one that was not heard of for longest goes first."""
_MOST_SHOWN = 500
"""Characters of a message that is told once for all its repetitions."""
_FIRST_KEYS = ("timestamp", "level", "role", "event", "logger")
_SECRET_KEYS = re.compile("password|secret|token|authorization", re.IGNORECASE)
_SECRETS = re.compile(r"(?<=://)[^/\s@]+:[^/\s@]*(?=@)|(?<=Bearer )[^\s\"']+")
"""A user and password in an address, and a token in a header."""


def get_logger(name: str) -> BoundLogger:
    """Return a logger of structlog that writes through :mod:`logging`.

    ``log.info("version %d is live", 3, version=3)``: the sentence has its numbers in it, whoever formats it, and the
    keys are for machines. Keys of :func:`structlog.contextvars.bound_contextvars` are added to whatever is logged.
    """
    import structlog

    logger: BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_args_and_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return logger


def set_up_logging(
    level: int, *, role: str, format: Format = "auto", repeat_limit: int = 5, repeat_window_s: float = 60.0
) -> None:
    """Log from `level` on, to standard error; twice is fine, and the last word counts.

    Parameters
    ----------
    role
        Stands in every line, since processes share a terminal.
    format
        ``console``: for people; ``json``: one object a line; ``auto``: console on a terminal, else JSON.
    repeat_limit, repeat_window_s
        The same message is written so often within so many seconds; how often it came beyond that is told once.
    """
    root = logging.getLogger()
    handler = _handler()
    if handler is None:
        handler = _Handler()
        root.addHandler(handler)
    root.setLevel(level)
    # The client says every connection and every refresh; what fails reaches our own messages, with what to do.
    logging.getLogger("kafka").setLevel(logging.CRITICAL if level > logging.DEBUG else logging.DEBUG)
    change_logging(role=role, format=format, repeat_limit=repeat_limit, repeat_window_s=repeat_window_s)


def change_logging(
    *,
    role: str | None = None,
    format: Format | None = None,
    repeat_limit: int | None = None,
    repeat_window_s: float | None = None,
) -> None:
    """Change what is given, leave the rest; where :func:`set_up_logging` was not called, somebody else formats."""
    handler = _handler()
    if handler is None:
        return
    with handler.lock:  # type: ignore[union-attr]  # None only before a handler is made
        handler.role = role or handler.role
        handler.style = format or handler.style
        handler.repeats.limit = repeat_limit or handler.repeats.limit
        handler.repeats.window_s = repeat_window_s or handler.repeats.window_s
        handler.formatter = None


def _handler() -> _Handler | None:
    return next((handler for handler in logging.getLogger().handlers if isinstance(handler, _Handler)), None)


class _Handler(logging.StreamHandler[TextIO]):
    """Write to what standard error is at the moment, but the same message only so often."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.role = ""
        self.style: Format = "auto"
        self.repeats = Repeats()

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # as logging.lastResort does
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, unless it is only counted, and what was counted before; the handler's lock is held."""
        try:
            for what in self.repeats.take(record):
                super().emit(what)
        except Exception:  # a message that cannot be put into words must not end what it is about
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        if self.formatter is None:  # made late: a command that logs nothing need not wait for structlog
            self.formatter = _make_formatter(self.role, self.style, sys.stderr)
        return self.formatter.format(record)

    def close(self) -> None:
        """Tell what was only counted so far."""
        with self.lock:  # type: ignore[union-attr]
            for what in self.repeats.rest():
                super().emit(what)
        super().close()


@dataclass
class _Window:
    """One message since it began to come."""

    began: float
    n_seen: int = 0
    n_held: int = 0
    example: str = ""
    """The first that was held back."""
    record: logging.LogRecord | None = None
    """What tells of those held back; its message is made when they are told."""


class Repeats:
    """Hold a message back when it comes more than `limit` times in `window_s` seconds, and tell then how often it came.

    The same message: logger, level, the template before anything is put into it, and the kind of exception. So of
    errors, too, the first ones always get through. Whoever calls holds a lock.

    Parameters
    ----------
    clock
        Seconds that only grow.

    Examples
    --------
    >>> now = 0.0
    >>> repeats = Repeats(limit=2, window_s=60, clock=lambda: now)
    >>> def say(text):
    ...     record = logging.LogRecord("a", logging.WARNING, "", 0, text, (), None)
    ...     return [what.getMessage() for what in repeats.take(record)]
    >>> [say("no answer") for _ in range(4)]
    [['no answer'], ['no answer'], [], []]
    >>> now = 61.0
    >>> say("something else")
    ['… 2 more like this in 60 s: no answer', 'something else']
    """

    def __init__(self, *, limit: int = 5, window_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.window_s = window_s
        self._clock = clock
        self._windows: OrderedDict[tuple[object, ...], _Window] = OrderedDict()
        self._next_end = math.inf
        """Nothing is to be told before."""

    def take(self, record: logging.LogRecord) -> list[logging.LogRecord]:
        """Return what shall be written now that this record has come: maybe counts, maybe the record itself."""
        now = self._clock()
        told = self._ended(now) if now >= self._next_end else []
        key = _sameness(record)
        window = self._windows.get(key)
        if window is None or now - window.began >= self.window_s:
            window = self._windows[key] = _Window(now)
        self._windows.move_to_end(key)
        if len(self._windows) > _MOST_MESSAGES:
            told += _told(self._windows.popitem(last=False)[1], now)
        window.n_seen += 1
        if window.n_seen <= self.limit:
            return [*told, record]
        if window.n_held == 0:
            window.example, window.record = _text(record)[:_MOST_SHOWN], _about(record)
            self._next_end = min(self._next_end, window.began + self.window_s)
        window.n_held += 1
        return told

    def rest(self) -> list[logging.LogRecord]:
        """Return what is not told yet, at the end."""
        now = self._clock()
        windows, self._windows = self._windows, OrderedDict()
        return [record for window in windows.values() for record in _told(window, now)]

    def _ended(self, now: float) -> list[logging.LogRecord]:
        ended = [key for key, window in self._windows.items() if now - window.began >= self.window_s]
        told = [record for key in ended for record in _told(self._windows.pop(key), window_s=self.window_s)]
        ends = [window.began + self.window_s for window in self._windows.values() if window.n_held]
        self._next_end = min(ends, default=math.inf)
        return told


def _sameness(record: logging.LogRecord) -> tuple[object, ...]:
    template = str(record.msg)
    if not re.search("[a-zA-Z]{3}", template):  # "%s": the sentence is in what is put into it
        template = _text(record)
    kind = record.exc_info[0] if record.exc_info else None
    return record.name, record.levelno, template, kind


def _about(record: logging.LogRecord) -> logging.LogRecord:
    return logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, "", (), None)


def _told(window: _Window, now: float | None = None, *, window_s: float = 0.0) -> list[logging.LogRecord]:
    """Return a record that tells what was held back, none if nothing was."""
    record = window.record
    if record is None:
        return []
    seconds = window_s if now is None else now - window.began
    record.msg, record.args = "… %d more like this in %.3g s: %s", (window.n_held, seconds, window.example)
    record.n_suppressed = window.n_held
    return [record]


def _text(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # arguments that do not fit: the handler says so when it is written
        return str(record.msg)


# --- what a line looks like


def _make_formatter(role: str, style: Format, stream: TextIO) -> ProcessorFormatter:
    import structlog
    from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level, add_logger_name

    is_terminal = stream.isatty()
    is_console = style == "console" or (style == "auto" and is_terminal)

    def add_role(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["role"] = role
        event.pop("message", None)  # what another handler's formatter leaves in the record, as it is no extra
        event.pop("asctime", None)
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        add_log_level,
        add_logger_name,
        ExtraAdder(),
        add_role,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,  # without the values of variables, among which may be secrets
        _without_secrets,
    ]
    if not is_console:
        return ProcessorFormatter(processors=[*shared, _as_json])
    console = structlog.dev.ConsoleRenderer(
        0,  # the keys follow the sentence at once
        colors=is_terminal and not os.environ.get("NO_COLOR"),
        exception_formatter=structlog.dev.plain_traceback,
        sort_keys=False,
    )
    return ProcessorFormatter(processors=[*shared, _printable, console])


def _without_secrets(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide what looks like a secret. Our own messages hold none; a library's may, and an exception's."""
    for key, value in event.items():
        if _SECRET_KEYS.search(key):
            event[key] = "(not shown)"
        elif isinstance(value, str):
            event[key] = _SECRETS.sub("…", value)
    return event


def _printable(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Make the sentence one line that a terminal can be given: it may repeat what a stranger sent."""
    text = " ".join(str(event["event"]).splitlines())
    event["event"] = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return event


def _as_json(_logger: object, _method: str, event: Mapping[str, Any]) -> str:
    first = {key: event[key] for key in _FIRST_KEYS if key in event}
    rest = {key: _plain(value) for key, value in event.items() if key not in first}
    return json.dumps(first | rest, default=str)


def _plain(value: object) -> object:
    """Return a value as JSON has it: it knows no NaN."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
