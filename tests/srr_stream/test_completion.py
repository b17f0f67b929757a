"""Completion as the shells take it, and what all commands share in what they print."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class
from click.testing import CliRunner

from srr_stream.cli import main
from srr_stream.cli.common import Progress, has_colour, painted


class Terminal(io.StringIO):
    """A terminal that keeps what is written."""

    def isatty(self) -> bool:
        return True


def script(shell: str) -> str:
    result = CliRunner().invoke(main, ["completion", shell], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_the_one_that_click_makes(shell: str) -> None:
    kind = get_completion_class(shell)
    assert kind is not None
    assert script(shell) == kind(main, {}, "srr-stream", "_SRR_STREAM_COMPLETE").source() + "\n"


def test_another_shell_is_a_usage_error() -> None:
    assert CliRunner().invoke(main, ["completion", "tcsh"]).exit_code == 2


def test_bash_completes_commands_by_the_script(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None, "bash is needed"
    (tmp_path / "completion.bash").write_text(script("bash"))
    asked = (
        "source completion.bash && COMP_WORDS=(srr-stream doc) COMP_CWORD=1 && "
        '_srr_stream_completion srr-stream && echo "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    answer = subprocess.run(
        [bash, "-c", asked], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60
    )
    assert (answer.returncode, answer.stdout.strip(), answer.stderr) == (0, "doctor", "")


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert painted("ok", Terminal(), fg="green") == "\x1b[32mok\x1b[0m"
    assert painted("ok", io.StringIO(), fg="green") == "ok"
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colour(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not has_colour(Terminal())


def test_progress_on_a_terminal_is_one_line_that_goes_away() -> None:
    times = iter([0.0, 0.1, 1.0, 2.0])
    terminal = Terminal()
    with Progress("scored", 1000, clock=lambda: next(times), stream=terminal) as progress:
        progress.update(10)  # too soon
        progress.update(100, note="training\nnow")
        progress.update(500)
    drawn = "scored 100 of 1,000, 100/s, 9 s left, training\ufffdnow"
    last = "scored 500 of 1,000, 250/s, 2 s left"
    assert terminal.getvalue().startswith(f"\r{drawn}\r{last}")
    assert terminal.getvalue().endswith("\r")
    assert "\n" not in terminal.getvalue()


def test_progress_elsewhere_is_a_line_now_and_then_and_without_a_total_says_no_time_left() -> None:
    times = iter([0.0, 9.0, 20.0, 21.0])
    file = io.StringIO()
    with Progress("read", clock=lambda: next(times), stream=file) as progress:
        for n in (1, 30, 40):
            progress.update(n)
    assert file.getvalue() == "read 30, 1.5/s\n"
