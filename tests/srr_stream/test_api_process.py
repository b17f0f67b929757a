"""The API's process: over a real broker, beside a running service, and when something it needs is not there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from srr_stream.api_process import ApiProcess, Ports, _Following, _Parts, run_api
from srr_stream.broker import create_topics
from srr_stream.labels import read_labels
from srr_stream.loading import check_settings
from srr_stream.service import Service

Stream = Any
Wait = Callable[..., Any]
WILD = b'{"duration_ms": 9e5, "bytes_sent": 1, "load": 0.5, "route": "/"}'
SRR_STREAM = [sys.executable, "-c", "from srr_stream.cli import main; main()"]


def request(port: int, method: str, path: str, *, token: str = "", body: Any = None) -> tuple[int, Any]:
    """Return status and JSON of an answer; status 0 if nobody listens."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    content = json.dumps(body).encode() if body is not None else None
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", content, headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())
    except OSError:
        return 0, None


@contextmanager
def api(settings: Any, **options: Any) -> Iterator[int]:
    """Serve the API from a thread, and give its port."""
    stop, is_up = threading.Event(), threading.Event()
    ports: list[int] = []
    errors: list[BaseException] = []

    def note(port: int) -> None:
        ports.append(port)
        is_up.set()

    def serve() -> None:
        try:
            run_api(settings, should_stop=stop.is_set, on_port=note, **options)
        except BaseException as error:
            errors.append(error)
            is_up.set()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert is_up.wait(60)
        assert not errors, errors
        yield ports[0]
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def alert(offset: int) -> bytes:
    body = {
        "id": f"in-0-{offset}",
        "topic": "in",
        "partition": 0,
        "offset": offset,
        "key": None,
        "time": "2026-01-01T00:00:00.000Z",
        "score": 9.0,
        "p_value": 0.001,
        "severity": 1.5 + offset,
        "flagged": True,
        "version": 1,
        "reasons": [],
    }
    return json.dumps(body, separators=(",", ":")).encode()


def test_what_comes_to_the_alerts_topic_is_listed_and_labels_go_to_theirs(
    stream: Stream, wait_until: Wait, tmp_path: Any
) -> None:
    labels_topic = f"{stream.topic}-labels"
    create_topics(stream.bootstrap_servers, {labels_topic: 1})
    settings = check_settings(stream.content(labels={"topic": labels_topic}))
    stream.produce([b'{"duration_ms": 1, "bytes_sent": 2, "route": "/"}'])
    body = json.loads(alert(0)) | {"id": f"{stream.topic}-0-0", "topic": stream.topic}
    records = replace(stream, topic=stream.alerts_topic)
    records.produce([alert(i) for i in range(30)])
    with api(settings) as port:
        wait_until(lambda: request(port, "GET", "/v1/flagged")[1]["n_total"] == 30, what="30 flagged records")
        records.produce([json.dumps(body, separators=(",", ":")).encode()])
        wait_until(lambda: request(port, "GET", "/v1/flagged")[1]["n_total"] == 31, what="one more")
        token = (settings.api.state_dir / "api-token").read_text().strip()
        asked = {"ids": ["in-0-3"], "label": "normal"}
        assert request(port, "POST", "/v1/labels", body=asked)[0] == 401
        assert request(port, "POST", "/v1/labels", body=asked, token=token)[0] == 200
        wait_until(lambda: request(port, "GET", "/v1/flagged?label=normal")[1]["n_total"] == 1, what="the label")
        status = request(port, "GET", "/v1/status")[1]
        assert (status["state"], status["n_in_index"], status["problems"]) == ("unreachable", 31, [])
    book = read_labels({"bootstrap_servers": [stream.bootstrap_servers]}, labels_topic)
    assert [(label.id, label.label) for label in book.all()] == [("in-0-3", "normal")]
    with api(settings) as port:  # the index is still there, and labels are read again
        wait_until(lambda: request(port, "GET", "/v1/flagged?label=normal")[1]["n_total"] == 1, what="the label again")
        assert request(port, "GET", "/v1/flagged")[1]["n_total"] == 31


def test_topics_that_are_missing_are_said_and_the_rest_answers(stream: Stream, wait_until: Wait) -> None:
    content = stream.content(output={"alerts_topic": "never-made"}, labels={"topic": "never-made-either"})
    with api(check_settings(content)) as port:
        said = wait_until(
            lambda: len(p := request(port, "GET", "/v1/status")[1]["problems"]) == 2 and p, what="both problems"
        )
        assert all("there is no topic never-made" in problem for problem in said)
        assert request(port, "GET", "/v1/flagged")[0] == 200


def test_it_learns_where_scorer_and_trainer_listen_while_it_runs(stream: Stream, wait_until: Wait) -> None:
    ports = Ports(None, None)
    with api(check_settings(stream.content()), ports=ports) as port:
        assert request(port, "GET", "/v1/status")[1]["scorers"] == []
        ports.scorer = ports.trainer = 1
        status = request(port, "GET", "/v1/status")[1]
        assert status["scorers"][0]["url"] == "http://127.0.0.1:1"
        assert status["trainer"]["reason"] == "Connection refused"


def test_addresses_of_the_settings_go_before_those_of_this_machine(stream: Stream) -> None:
    there = {"scorer_urls": ["http://127.0.0.1:1", "http://127.0.0.1:2"], "trainer_url": "http://127.0.0.1:3"}
    settings = check_settings(stream.content(api={**stream.content()["api"], **there}))
    with api(settings) as port:
        status = request(port, "GET", "/v1/status")[1]
    assert [scorer["url"] for scorer in status["scorers"]] == there["scorer_urls"]
    assert status["trainer"]["url"] == there["trainer_url"]


def test_the_address_is_logged_with_the_token_only_if_it_was_made_here(
    stream: Stream, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    caplog.set_level("INFO")
    settings = check_settings(stream.content())
    with api(settings):
        pass
    token = (settings.api.state_dir / "api-token").read_text().strip()
    assert f"/#token={token}" in caplog.text
    caplog.clear()
    (tmp_path / "token").write_text("given-by-an-operator\n")
    given = stream.content()["api"] | {"token_file": str(tmp_path / "token")}
    with api(check_settings(stream.content(api=given))) as port:
        assert request(port, "POST", "/v1/train", token="given-by-an-operator")[0] == 202
        assert request(port, "POST", "/v1/train", token=token)[0] == 401
    assert "API and review page: http://127.0.0.1:" in caplog.text
    assert "given-by-an-operator" not in caplog.text


class Rated:
    """A desk or a live model, as far as α goes."""

    rate = 0.005

    def set_false_alarm_rate(self, rate: float) -> None:
        self.rate = rate


def test_changed_settings_are_gone_by(stream: Stream) -> None:
    desk, live_model = Rated(), Rated()
    parts = _Parts(desk, live_model, _Following(lambda on_records: Tail()), f"{stream.topic}-alerts")  # type: ignore[arg-type]
    parts.look(None)
    assert (desk.rate, live_model.rate) == (0.005, 0.005)
    parts.look(check_settings(stream.content(threshold={"false_alarm_rate": 0.04})))
    assert (desk.rate, live_model.rate) == (0.04, 0.04)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def test_a_port_that_is_taken_is_one_line_with_what_to_change(stream: Stream, taken_port: int) -> None:
    content = stream.content(api={"enabled": False, "port": taken_port, "state_dir": str(stream.folder / "state")})
    (stream.folder / "settings.yaml").write_text(json.dumps(content))
    ended = subprocess.run(
        [*SRR_STREAM, "api", "-c", str(stream.folder / "settings.yaml")], capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 3
    assert f"the API cannot listen on 127.0.0.1:{taken_port}: Address already in use; change api.port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_host_that_is_not_this_machine_is_one_line(stream: Stream) -> None:
    settings = check_settings(stream.content(api={"port": 0, "host": "no-such-host.invalid"}))
    with pytest.raises(
        OSError, match=r"the API cannot listen on no-such-host\.invalid:0: .+; change api\.port or api\.host"
    ):
        run_api(settings, should_stop=lambda: True)


def test_a_state_folder_that_cannot_be_written_is_one_line(stream: Stream) -> None:
    (stream.folder / "file").write_text("")
    settings = check_settings(stream.content(api={"port": 0, "state_dir": str(stream.folder / "file" / "state")}))
    with pytest.raises(OSError, match="Not a directory"):
        run_api(settings, should_stop=lambda: True)


# Following


class Tail:
    def __init__(self, problem: str | None = None) -> None:
        self.problem = problem
        self.done: list[str] = []

    def start(self) -> None:
        self.done.append("start")

    def stop(self) -> None:
        self.done.append("stop")


def test_a_topic_is_followed_from_its_beginning_again_when_its_records_are_lost() -> None:
    made: list[Any] = []

    def make(on_records: Callable[[Sequence[Any]], None]) -> Any:
        made.append(Tail(f"problem {len(made)}"))
        return made[-1]

    following = _Following(make)
    following.look()
    assert (made, following.problem) == ([], None)
    following.again.set()
    following.look()
    following.look()
    assert (len(made), following.problem) == (1, "problem 0")
    following.again.set()
    following.look()
    following.stop()
    assert [tail.done for tail in made] == [["start", "stop"], ["start", "stop"]]


# Beside a service


@pytest.mark.operate
def test_a_service_with_its_api_scores_lists_labels_and_goes_on_when_the_api_is_killed(
    running: Any, stream: Stream, make_values: Callable[..., list[bytes]], wait_until: Wait
) -> None:
    labels_topic = f"{stream.topic}-labels"
    create_topics(stream.bootstrap_servers, {labels_topic: 1})
    settings = check_settings(stream.content(labels={"topic": labels_topic}))
    service = Service(settings, has_api=True)
    with running(service):
        child = service.api
        assert child is not None
        stream.produce([*make_values(596), *[WILD] * 4])
        wait_until(lambda: child.port, what="the API", timeout_s=60)
        status = wait_until(
            lambda: (
                (said := request(child.port, "GET", "/v1/status")[1])["state"] == "scoring"
                and said["n_scored"] == 600
                and said["trainer"]["is_reachable"]
                and said
            ),
            what="a state of scoring",
            timeout_s=60,
        )
        assert status["live_version"] is not None
        n = wait_until(lambda: request(child.port, "GET", "/v1/flagged")[1]["n_total"], what="flagged records")
        first = request(child.port, "GET", "/v1/flagged?sort=severity&limit=1")[1]["items"][0]
        detail = wait_until(
            lambda: (said := request(child.port, "GET", f"/v1/flagged/{first['id']}")[1])["nearest"] and said,
            what="the nearest normal records",
        )
        assert detail["record"]["route"]
        token = (settings.api.state_dir / "api-token").read_text().strip()
        asked = {"ids": [first["id"]], "label": "anomaly", "author": "ann"}
        assert request(child.port, "POST", "/v1/labels", body=asked, token=token)[0] == 200
        history = request(child.port, "GET", "/v1/history")[1]
        assert sum(point["n"] for point in history["points"]) == 600
        port, pid = child.port, child.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        stream.produce(make_values(200, seed=1))
        wait_until(lambda: stream.count() == 800, what="verdicts without an API")
        wait_until(lambda: child.port not in (0, port), what="another API", timeout_s=60)
        said = wait_until(lambda: request(child.port, "GET", "/v1/flagged?label=anomaly")[1], what="the label")
        wait_until(
            lambda: request(child.port, "GET", "/v1/flagged?label=anomaly")[1]["n_total"] == 1, what="the label again"
        )
        assert said is not None
        assert request(child.port, "GET", "/v1/flagged")[1]["n_total"] >= n
        assert child.n_restarts == 1
        assert service.metrics_registry.get_sample_value("srr_api_restarts_total") == 1


@pytest.mark.operate
def test_a_service_whose_apis_port_is_taken_scores_and_tries_again(
    running: Any, stream: Stream, make_values: Callable[..., list[bytes]], wait_until: Wait, taken_port: int
) -> None:
    content = stream.content(api={"port": taken_port, "state_dir": str(stream.folder / "state")})
    service = Service(check_settings(content), has_api=True)
    with running(service):
        stream.produce(make_values(600))
        wait_until(lambda: stream.count() == 600, what="verdicts without an API")
        child = service.api
        assert child is not None
        wait_until(lambda: child.n_restarts >= 2, what="two more tries", timeout_s=60)
        assert child.port == 0


@pytest.mark.operate
def test_run_starts_the_api_and_ends_within_seconds(
    stream: Stream, make_values: Callable[..., list[bytes]], wait_until: Wait, free_port: int
) -> None:
    content: Mapping[str, Any] = stream.content(api={"enabled": True, "port": free_port}, log={"format": "console"})
    path = stream.folder / "settings.yaml"
    path.write_text(json.dumps(content))
    stream.produce(make_values(400))
    process = subprocess.Popen([*SRR_STREAM, "run", "-c", str(path)], stderr=subprocess.PIPE, text=True)
    try:
        wait_until(
            lambda: (request(free_port, "GET", "/v1/status")[1] or {}).get("state") == "scoring",
            what="the API of run",
            timeout_s=90,
        )
    finally:
        started = time.monotonic()
        process.terminate()
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert time.monotonic() - started < 20
    assert f"http://127.0.0.1:{free_port}/#token=" in log
    assert "Traceback" not in log


@pytest.mark.operate
def test_a_child_that_is_asked_to_stop_stops(stream: Stream, wait_until: Wait) -> None:
    child = ApiProcess(check_settings(stream.content()))
    child.start()
    wait_until(lambda: child.port, what="the API", timeout_s=60)
    started = time.monotonic()
    child.stop()
    child.stop()
    assert time.monotonic() - started < 5
    assert child.pid is None
