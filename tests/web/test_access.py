"""The token that is made, and who is asked what it is about."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from srr_stream.web.access import TOKEN_FILE, Access, own_token
from srr_stream.web.asking import StatusAsker

# The token


def test_a_token_is_made_once_for_nobody_else_to_read(tmp_path: Path) -> None:
    folder = tmp_path / "var" / "state"
    token = own_token(folder)
    assert len(token) >= 43
    assert (folder / TOKEN_FILE).stat().st_mode & 0o777 == 0o600
    assert own_token(folder) == token
    assert own_token(tmp_path / "other") != token


def test_a_token_whose_file_was_opened_to_others_is_closed_to_them_again(tmp_path: Path) -> None:
    own_token(tmp_path)
    (tmp_path / TOKEN_FILE).chmod(0o644)
    own_token(tmp_path)
    assert (tmp_path / TOKEN_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "short\n"])
def test_a_torn_token_is_made_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / TOKEN_FILE).write_text(content)
    assert len(own_token(tmp_path)) >= 43


def test_the_token_is_not_shown_with_who_decides_over_it() -> None:
    assert "hidden" not in repr(Access("hidden", True))
    assert "hidden" not in Access("hidden", True).session()


# Asking


class Role(http.server.ThreadingHTTPServer):
    """Something that listens, and answers with what it is told to."""

    def __init__(self) -> None:
        self.content: bytes = b'{"role": "scorer"}'
        self.status = 200
        self.asked: list[str] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        role = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                role.asked.append(self.path)
                role.may_answer.wait(10)
                self.send_response(role.status)
                self.end_headers()
                self.wfile.write(role.content)

            def log_message(self, format: str, *args: Any) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        self.may_answer.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


@pytest.fixture
def role() -> Iterator[Role]:
    made = Role()
    yield made
    made.end()


@pytest.fixture
def ask_of() -> Iterator[Callable[..., StatusAsker]]:
    made: list[StatusAsker] = []

    def make(*urls: str, trainer: str | None = None, **options: Any) -> StatusAsker:
        made.append(StatusAsker(lambda: urls, lambda: trainer, **options))
        return made[-1]

    yield make
    for asker in made:
        asker.close()


def test_all_are_asked_with_the_history_if_it_is_wanted(role: Role, ask_of: Callable[..., StatusAsker]) -> None:
    ask = ask_of(role.url, trainer=role.url)
    assert ask(True).scorers[0].content == {"role": "scorer"}
    assert sorted(role.asked) == ["/statusz", "/statusz?history=1"]


def test_one_that_does_not_listen_is_said_to(ask_of: Callable[..., StatusAsker]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        answers = ask_of(url, trainer=None)()
    assert (answers.scorers[0].content, answers.scorers[0].problem) == (None, "Connection refused")
    assert answers.trainer.problem == "has not said yet where it listens"


def test_one_that_hangs_is_waited_for_less_than_a_second_and_the_others_answer(
    role: Role, ask_of: Callable[..., StatusAsker]
) -> None:
    hanging = Role()
    hanging.may_answer.clear()
    try:
        ask = ask_of(hanging.url, role.url, timeout_s=0.3)
        started = time.monotonic()
        answers = ask()
        assert time.monotonic() - started < 1.0
        assert answers.scorers[0].problem in ("timed out", "does not answer within 0.3 s")
        assert answers.scorers[1].content == {"role": "scorer"}
    finally:
        hanging.end()


def test_a_host_that_is_not_there_is_waited_for_less_than_a_second(ask_of: Callable[..., StatusAsker]) -> None:
    started = time.monotonic()
    answers = ask_of("http://192.0.2.1:9108", timeout_s=0.3)()
    assert time.monotonic() - started < 1.0
    assert answers.scorers[0].content is None


@pytest.mark.parametrize(
    ("status", "content", "problem"),
    [
        (404, b"", "answers 404 at /statusz; it is another version, or something else"),
        (200, b"<html>", "Expecting value: line 1 column 1 (char 0)"),
        (200, b"[1]", "its /statusz is no JSON object"),
    ],
)
def test_what_is_no_answer_is_said_to_be_none(
    role: Role, ask_of: Callable[..., StatusAsker], status: int, content: bytes, problem: str
) -> None:
    role.status, role.content = status, content
    answer = ask_of(role.url)().scorers[0]
    assert (answer.content, answer.problem) == (None, problem)


def test_who_asks_at_the_same_time_gets_the_same_answer(role: Role, ask_of: Callable[..., StatusAsker]) -> None:
    role.may_answer.clear()
    ask = ask_of(role.url, timeout_s=5.0, max_age_s=60.0)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(ask())) for _ in range(5)]
    for thread in threads:
        thread.start()
    role.may_answer.set()
    for thread in threads:
        thread.join()
    assert [answers.scorers[0].content for answers in found] == [{"role": "scorer"}] * 5
    assert len(role.asked) == 1


def test_a_fresh_answer_is_given_again_and_an_old_one_is_not(role: Role, ask_of: Callable[..., StatusAsker]) -> None:
    ask = ask_of(role.url, max_age_s=0.0)
    ask()
    role.content = json.dumps({"role": "scorer", "n": 2}).encode()
    assert ask().scorers[0].content == {"role": "scorer", "n": 2}


def test_no_proxy_of_the_environment_stands_between(
    role: Role, ask_of: Callable[..., StatusAsker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "http_proxy", "http://127.0.0.1:1")
    monkeypatch.delitem(os.environ, "no_proxy", raising=False)
    assert ask_of(role.url)().scorers[0].content is not None
