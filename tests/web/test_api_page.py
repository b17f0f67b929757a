"""docs/api.md says what is true: its examples are sent, and its table is that of the program."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srr_stream.web.problems import PROBLEMS

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S) for line in block.splitlines()]


@pytest.fixture(scope="module")
def bench(module_desk_with: Callable[..., Any]) -> Any:
    return module_desk_with(5)


def send(client: Any, command: str) -> Any:
    """Send what a command of curl would."""
    words = iter(shlex.split(command))
    assert next(words) == "curl"
    method, content, headers, url = None, None, {}, ""
    for word in words:
        if word == "-X":
            method = next(words)
        elif word == "-d":
            content = next(words)
        elif word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value.replace("$TOKEN", "a-token-that-nobody-guesses")
        elif word != "-s":
            url = word
    path = url.removeprefix("http://127.0.0.1:9110")
    return client(method or ("GET" if content is None else "POST"), path, content=content, headers=headers)


def test_every_command_is_answered(bench: Any, client_of: Callable[..., Any]) -> None:
    client = client_of(bench)
    answers = {command: send(client, command) for command in COMMANDS}
    assert {command: answer.status_code for command, answer in answers.items() if not answer.is_success} == {}
    assert len(answers) == 9
    scored = next(answer for command, answer in answers.items() if "/v1/score" in command)
    assert scored.json()["verdicts"][0]["flagged"] is True


def test_the_table_of_problems_is_that_of_the_program() -> None:
    told = re.findall(r"^\| `(\w+)` \| (\d+) \|$", PAGE, flags=re.M)
    assert {name: int(status) for name, status in told} == {name: status for name, (status, _) in PROBLEMS.items()}


def test_the_problem_that_is_shown_is_the_one_that_comes(bench: Any, client_of: Callable[..., Any]) -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.S)
    assert client_of(bench).get("/v1/models/9").json() == json.loads(shown)


def test_the_states_are_those_of_the_program() -> None:
    from typing import get_args

    from srr_stream.web.views import State

    told = next(line for line in PAGE.splitlines() if "The states are" in line)
    assert set(re.findall(r"`(\w+)`", told)) == set(get_args(State))
