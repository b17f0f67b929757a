"""The tutorial as a reader goes through it: every command of the page is run, and prints what the page says.

Only ports are others, and where the broker is; the tools of Kafka are stood in for by small programs that take the same
options, because the embedded broker comes without them.
"""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.operate.conftest import DEPLOY, free_port

pytestmark = [pytest.mark.operate, pytest.mark.timeout(600)]

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
FILE, TOPIC = "Without Kafka, in three minutes", "On your own topic, to an alert in Prometheus"
_END = "\1"
_BLOCK_S = 180.0
_NUMBER = re.compile(r"-?\d[\d,]*(\.\d+)?(e[+-]?\d+)?")
_REASON = re.compile(r"\S+ \S+ where \S+ was expected")
KAFKA_TOPICS = """
import sys
from kafka.admin import KafkaAdminClient, NewTopic
given = dict(zip(sys.argv[1:], sys.argv[2:]))
admin = KafkaAdminClient(bootstrap_servers=given["--bootstrap-server"])
settings = dict([given["--config"].split("=")]) if "--config" in given else {}
admin.create_topics([NewTopic(given["--topic"], int(given["--partitions"]), 1, topic_configs=settings)])
admin.wait_for_topics([given["--topic"]])
admin.close()
"""
CONSOLE_CONSUMER = """
import sys
from kafka import KafkaConsumer
given = dict(zip(sys.argv[1:], sys.argv[2:]))
consumer = KafkaConsumer(given["--topic"], bootstrap_servers=given["--bootstrap-server"], auto_offset_reset="earliest")
print(next(consumer).value.decode())
consumer.close()
"""


@dataclass(frozen=True)
class Step:
    """A block of commands, and what it prints if the page says so."""

    commands: str
    printed: str | None


def steps(title: str) -> list[Step]:
    """Return the steps of a section of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```(sh|text)\n(.*?)^```$", section, flags=re.M | re.S)
    found: list[Step] = []
    for kind, text in blocks:
        if kind == "sh":
            found.append(Step(text, None))
        else:
            found[-1] = Step(found[-1].commands, text)
    return found


class Shell:
    """A bash that a reader types into."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._errors = folder / "errors.log"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                ["bash"],
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.run("set -emu")

    def run(self, commands: str) -> str:
        """Return what the commands print; fail as soon as one of them does."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{commands}\nprintf '%s\\n' '{_END}'\n")
        self._process.stdin.flush()
        printed, until = [], time.monotonic() + _BLOCK_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                line = None
            assert line is not None, (
                f"{commands}\nended or hung:\n{''.join(printed)}\n{self._errors.read_text()[-3000:]}"
            )
            if line.strip("\n") == _END:
                return "".join(printed)
            printed.append(line)

    def close(self) -> None:
        """End it with all that it started."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        for child in children:
            child.terminate()
        _, alive = psutil.wait_procs(children, timeout=20)
        for child in alive:
            child.kill()
        self._process.kill()
        self._process.wait()
        self._reader.join(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)


@contextmanager
def shell(folder: Path, **variables: str) -> Iterator[Shell]:
    """Give a shell with the tools of Kafka and the files of the checkout."""
    tools = folder / "tools"
    tools.mkdir()
    for name, program in (("kafka-topics.sh", KAFKA_TOPICS), ("kafka-console-consumer.sh", CONSOLE_CONSUMER)):
        (tools / name).write_text(f"#!{sys.executable}\n{program}")
        (tools / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SRR__")}
    path = f"{tools}:{Path(sys.executable).parent}:{environment['PATH']}"
    opened = Shell(folder, {**environment, **variables, "PATH": path})
    try:
        yield opened
    finally:
        opened.close()


def normalised(line: str) -> str:
    """Return a line with numbers, reasons and widths of columns made equal."""
    return _NUMBER.sub("N", _REASON.sub("REASON", " ".join(line.split())))


def check_printed(step: Step, printed: str) -> None:
    """Fail unless what was printed is what the page shows; a line of … stands for any lines."""
    if step.printed is None:
        return
    said = (normalised(line) for line in step.printed.splitlines())
    pattern = "".join(r"(?:.*\n)*?" if line == "…" else re.escape(line) + "\n" for line in said)
    found = "".join(normalised(line) + "\n" for line in printed.splitlines())
    assert re.fullmatch(pattern, found), f"the page says\n{step.printed}\nbut this is printed\n{printed}"


def test_from_an_unknown_csv_to_the_first_flagged_record_with_a_reason(tmp_path: Path) -> None:
    """In at most five commands and three minutes."""
    found = steps(FILE)
    assert 2 <= len(found) <= 5
    started = time.monotonic()
    with shell(tmp_path) as reader:
        for step in found:
            printed = reader.run(step.commands)
            check_printed(step, printed)
    assert time.monotonic() - started < 180
    first = printed.split("the first 3 flagged records\n")[1].splitlines()
    assert re.fullmatch(r"connections\.csv-0-\d+ .* severity \d\.\d+, version \d", first[0])
    assert _REASON.search(first[1])


def test_from_one_s_own_topic_to_an_alert_in_prometheus(tmp_path: Path, embedded_broker: Any) -> None:
    ports = {name: str(free_port()) for name in ("9108", "9109", "9110", "9090")}
    (tmp_path / "deploy" / "prometheus").mkdir(parents=True)
    for name in ("prometheus.yml", "rules.yml"):
        text = (DEPLOY / "prometheus" / name).read_text(encoding="utf-8")
        (tmp_path / "deploy" / "prometheus" / name).write_text(_with_ports(text, ports))
    variables = {
        "SRR__HTTP__SCORER_PORT": ports["9108"],
        "SRR__HTTP__TRAINER_PORT": ports["9109"],
        "SRR__API__PORT": ports["9110"],
    }
    broker = embedded_broker.bootstrap_servers
    with shell(tmp_path, **variables) as reader:
        for step in steps(FILE)[:2]:
            reader.run(step.commands)
        reader.run(f"export SRR__KAFKA__BOOTSTRAP_SERVERS={broker}")
        for step in steps(TOPIC):
            commands = _with_ports(step.commands.replace("localhost:9092", broker), ports)
            check_printed(step, reader.run(commands))
        reader.run("wait")
        assert "Traceback" not in (tmp_path / "run.log").read_text()


def _with_ports(text: str, ports: Mapping[str, str]) -> str:
    for usual, free in ports.items():
        text = text.replace(f"localhost:{usual}", f"localhost:{free}")
    return text
