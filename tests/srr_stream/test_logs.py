"""What a line of the log looks like, what is in it, and that a flood is counted instead of written."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.contextvars import bound_contextvars

from srr_stream.logs import Repeats, change_logging, get_logger, set_up_logging

log = get_logger("srr_stream.somewhere")
plain_log = logging.getLogger("consumers.elsewhere")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Written:
    """What went to standard error so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Written:
    return Written(capsys)


def lines(stream: Written) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# --- formats


def test_elsewhere_than_on_a_terminal_a_line_is_a_json_object_in_this_order(stderr: Written) -> None:
    set_up_logging(logging.INFO, role="scorer")
    log.info("version %d is live", 3, version=3, topic="requests", partition=1, offset=77)
    (line,) = lines(stderr)
    assert list(line) == ["timestamp", "level", "role", "event", "logger", "version", "topic", "partition", "offset"]
    assert line["timestamp"].endswith("Z")
    assert line | {"timestamp": ""} == {
        "timestamp": "",
        "level": "info",
        "role": "scorer",
        "event": "version 3 is live",
        "logger": "srr_stream.somewhere",
        "version": 3,
        "topic": "requests",
        "partition": 1,
        "offset": 77,
    }


def test_what_logs_by_the_standard_library_looks_the_same(stderr: Written) -> None:
    set_up_logging(logging.INFO, role="scorer")
    plain_log.warning("%s: left out", "a field", extra={"topic": "requests"})
    (line,) = lines(stderr)
    assert (line["level"], line["event"], line["topic"]) == ("warning", "a field: left out", "requests")
    assert line["logger"] == "consumers.elsewhere"


def test_an_exception_is_a_field_of_its_line_without_the_values_of_variables(stderr: Written) -> None:
    set_up_logging(logging.INFO, role="trainer", format="json")
    try:
        password = "hunter2"
        raise MemoryError("too little")
    except MemoryError:
        log.exception("training failed", run="a1b2")
        plain_log.exception("failed as well")
    first, second = lines(stderr)
    assert first["event"] == "training failed"
    assert first["exception"].startswith("Traceback (most recent call last)")
    assert first["exception"].endswith("MemoryError: too little")
    assert "MemoryError: too little" in second["exception"]
    assert password not in first["exception"] + second["exception"]


def test_on_a_terminal_a_line_is_for_people_and_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    set_up_logging(logging.INFO, role="scorer")
    log.info("version %d is live", 3, version=3)
    assert "version 3 is live" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.truncate(0)
    change_logging(role="scorer")
    log.info("version %d is live", 4, version=4)
    assert "\x1b[" not in terminal.getvalue()


def test_a_line_for_people_has_role_and_context_and_no_control_characters(stderr: Written) -> None:
    set_up_logging(logging.INFO, role="scorer", format="console")
    log.warning("a stranger says %s", "\x1b]0;owned\x07\nand more", version=3)
    (line,) = stderr.getvalue().splitlines()
    assert "a stranger says �]0;owned� and more" in line
    assert "role=scorer" in line
    assert "version=3" in line


def test_an_exception_for_people_has_its_traceback(stderr: Written) -> None:
    set_up_logging(logging.INFO, role="scorer", format="console")
    try:
        raise ValueError("bad")
    except ValueError:
        log.exception("failed")
    assert "Traceback (most recent call last)" in stderr.getvalue()
    assert "ValueError: bad" in stderr.getvalue()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}, "a \ud800 half", SecretStr("hunter2")])
def test_whatever_the_context_is_the_line_is_json(stderr: Written, value: object) -> None:
    set_up_logging(logging.INFO, role="scorer", format="json")
    log.info("odd", value=value)
    line = json.loads(stderr.getvalue(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert line["event"] == "odd"
    assert "hunter2" not in stderr.getvalue()


def test_the_context_of_a_run_is_in_every_line_within_it(stderr: Written) -> None:
    set_up_logging(logging.INFO, role="trainer", format="json")
    with bound_contextvars(run="a1b2"):
        log.info("training")
        plain_log.warning("reading")
    log.info("done")
    assert [line.get("run") for line in lines(stderr)] == ["a1b2", "a1b2", None]


def test_below_the_level_nothing_is_written_and_the_kafka_client_is_quiet(stderr: Written) -> None:
    set_up_logging(logging.WARNING, role="scorer", format="json")
    log.info("not this")
    plain_log.info("nor this")
    logging.getLogger("kafka.conn").error("nor that a connection closed")
    log.warning("this")
    assert [line["event"] for line in lines(stderr)] == ["this"]


def test_setting_up_twice_writes_once_as_said_last(stderr: Written) -> None:
    set_up_logging(logging.INFO, role="srr-stream", format="json")
    log.info("first")
    set_up_logging(logging.INFO, role="scorer", format="json")
    log.info("second")
    change_logging(format="console")
    log.info("third")
    first, second, third = stderr.getvalue().splitlines()
    assert json.loads(first)["role"] == "srr-stream"
    assert json.loads(second)["role"] == "scorer"
    assert "third" in third
    assert not third.startswith("{")


def test_where_somebody_else_formats_nothing_is_changed(caplog: pytest.LogCaptureFixture) -> None:
    n_before = len(logging.getLogger().handlers)
    change_logging(role="scorer", format="json")
    assert len(logging.getLogger().handlers) == n_before
    log.warning("version %d is refused", 3, version=3)
    assert caplog.messages == ["version 3 is refused"]
    assert caplog.records[0].version == 3  # type: ignore[attr-defined]  # the context is of the record


# --- secrets


@pytest.mark.parametrize(
    "say",
    [
        lambda: log.error("no answer from %s", "https://reader:hunter2@registry.example.com/x"),
        lambda: log.error("refused", url="s3://key:hunter2@bucket"),
        lambda: log.error("refused", sasl_plain_password="hunter2"),
        lambda: log.error("refused", api_token="hunter2", Authorization="Basic hunter2"),
        lambda: plain_log.error("answered 401 to Authorization: Bearer hunter2"),
        lambda: log.error("settings", password=SecretStr("hunter2")),
    ],
)
@pytest.mark.parametrize("format", ["json", "console"])
def test_no_secret_is_in_a_line(stderr: Written, format: Any, say: Callable[[], None]) -> None:
    set_up_logging(logging.INFO, role="scorer", format=format)
    say()
    assert stderr.getvalue()
    assert "hunter2" not in stderr.getvalue()


def test_no_secret_is_in_an_exception(stderr: Written) -> None:
    set_up_logging(logging.INFO, role="scorer", format="json")
    try:
        raise OSError("cannot reach https://reader:hunter2@registry.example.com/x")
    except OSError:
        log.exception("failed")
    assert "https://…@registry.example.com/x" in lines(stderr)[0]["exception"]


# --- repetitions


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def said(
    repeats: Repeats,
    text: str,
    *args: object,
    name: str = "a",
    level: int = logging.WARNING,
    error: BaseException | None = None,
) -> list[str]:
    """Return what is written when something is said."""
    exc_info = (type(error), error, None) if error is not None else None
    return [what.getMessage() for what in repeats.take(logging.LogRecord(name, level, "", 0, text, args, exc_info))]


def test_the_same_message_is_written_up_to_the_limit_then_counted_and_told_at_the_next_record() -> None:
    clock = Clock()
    repeats = Repeats(limit=2, window_s=60, clock=clock)
    written = [said(repeats, "no answer from %s", host) for host in "abcdef"]
    assert written == [["no answer from a"], ["no answer from b"], [], [], [], []]
    clock.now = 59.9
    assert said(repeats, "all is well") == ["all is well"]
    clock.now = 60.0
    assert said(repeats, "all is well") == ["… 4 more like this in 60 s: no answer from c", "all is well"]
    assert said(repeats, "no answer from %s", "g") == ["no answer from g"]


def test_a_new_window_begins_with_the_message_itself() -> None:
    clock = Clock()
    repeats = Repeats(limit=1, window_s=60, clock=clock)
    for _ in range(3):
        said(repeats, "no answer")
    clock.now = 61
    assert said(repeats, "no answer") == ["… 2 more like this in 60 s: no answer", "no answer"]
    assert said(repeats, "no answer") == []


def test_other_loggers_levels_and_templates_are_other_messages() -> None:
    repeats = Repeats(limit=1, window_s=60, clock=Clock())
    assert said(repeats, "no answer") == ["no answer"]
    assert said(repeats, "no answer", name="b") == ["no answer"]
    assert said(repeats, "no answer", level=logging.ERROR) == ["no answer"]
    assert said(repeats, "no answer at all") == ["no answer at all"]
    assert said(repeats, "no answer") == []


def test_a_template_that_says_nothing_is_told_by_what_is_put_into_it() -> None:
    repeats = Repeats(limit=1, window_s=60, clock=Clock())
    assert said(repeats, "%s", "version 3 refused") == ["version 3 refused"]
    assert said(repeats, "%s", "the registry is away") == ["the registry is away"]
    assert said(repeats, "%s", "version 3 refused") == []


def test_another_kind_of_exception_is_never_lost_behind_a_flood_of_one() -> None:
    repeats = Repeats(limit=1, window_s=60, clock=Clock())
    assert said(repeats, "failed", level=logging.ERROR, error=ValueError("a")) == ["failed"]
    assert said(repeats, "failed", level=logging.ERROR, error=ValueError("b")) == []
    assert said(repeats, "failed", level=logging.ERROR, error=MemoryError()) == ["failed"]


def test_what_was_counted_is_told_at_the_end_with_the_seconds_that_it_took() -> None:
    clock = Clock()
    repeats = Repeats(limit=1, window_s=60, clock=clock)
    for _ in range(4):
        said(repeats, "no answer")
    clock.now = 12.0
    (record,) = repeats.rest()
    assert record.getMessage() == "… 3 more like this in 12 s: no answer"
    assert (record.levelno, record.name, record.n_suppressed) == (logging.WARNING, "a", 3)  # type: ignore[attr-defined]
    assert repeats.rest() == []


def test_memory_is_bounded_and_the_message_that_has_to_go_is_told() -> None:
    repeats = Repeats(limit=1, window_s=60, clock=Clock())
    said(repeats, "first")
    said(repeats, "first")
    told = [line for i in range(1500) for line in said(repeats, f"message {i} of many") if "more like this" in line]
    assert told == ["… 1 more like this in 0 s: first"]
    assert len(repeats._windows) == 1000


def test_arguments_that_do_not_fit_their_template_end_nothing(stderr: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    set_up_logging(logging.INFO, role="scorer", format="json", repeat_limit=1)
    for _ in range(3):
        plain_log.warning("%d records", "many")
    plain_log.warning("and on")
    assert [line["event"] for line in lines(stderr)] == ["and on"]


def test_threads_that_say_the_same_are_counted_to_the_last(stderr: Written) -> None:
    set_up_logging(logging.INFO, role="scorer", format="json", repeat_limit=3, repeat_window_s=600)
    start = threading.Barrier(4)

    def flood() -> None:
        start.wait()
        for i in range(250):
            log.error("no answer from %d", i)

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler = logging.getLogger().handlers[-1]
    handler.close()
    written = lines(stderr)
    assert len(written) == 4
    assert written[-1]["n_suppressed"] == 997
    assert written[-1]["level"] == "error"


def test_limits_may_change_while_it_logs(stderr: Written) -> None:
    set_up_logging(logging.INFO, role="scorer", format="json", repeat_limit=1)
    for _ in range(2):
        log.info("again")
    change_logging(repeat_limit=3)
    for _ in range(3):
        log.info("again")
    assert [line["event"] for line in lines(stderr)] == ["again", "again"]  # the first, and the third of what came


def test_a_process_that_ends_tells_what_it_counted() -> None:
    code = (
        "import logging\n"
        "from srr_stream.logs import set_up_logging\n"
        "set_up_logging(logging.INFO, role='scorer')\n"
        "for _ in range(100): logging.getLogger('a').error('no answer')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    events = [json.loads(line)["event"] for line in ended.stderr.splitlines()]
    assert len(events) == 6
    assert events[-1].startswith("… 95 more like this in ")
    assert events[-1].endswith(" s: no answer")


def test_help_does_not_wait_for_structlog() -> None:
    code = (
        "import sys; from srr_stream.cli import main\ntry: main(['--help'])\nfinally: print('structlog' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout.splitlines()[-1] == "False"
