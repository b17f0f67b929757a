"""The real chain, in small: a service on an embedded broker, Prometheus that scrapes it, Alertmanager, a webhook.

Prometheus and Alertmanager run with the files of ``deploy/``, changed in three ways: addresses, how often they look,
and all times of the rules divided by `FASTER`. All fixtures live as long as a module.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from srr_stream.broker import EmbeddedBroker
from srr_stream.loading import check_settings
from srr_stream.service import Service
from tests.srr_stream.conftest import Stream, make_values, running, wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
FASTER = 30
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TIME = re.compile(r"(?<![\w.])(\d+)([smhd])\b")
_STARTS_WITHIN_S = 30.0


def fetch(url: str) -> Any:
    """Return what an address answers, read as JSON if it is."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
        return json.loads(text) if "json" in answer.headers.get("Content-Type", "") else text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shortened(text: str) -> str:
    """Return an expression or a duration with all its times divided by `FASTER`; a second is the least.

    >>> shortened("rate(x[5m]) offset 1h")
    'rate(x[10s]) offset 120s'
    """
    return _TIME.sub(lambda found: f"{max(1, int(found[1]) * _UNITS_S[found[2]] // FASTER)}s", text)


def write_rules(path: Path) -> None:
    """Write the rules with shorter times."""
    content = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    for group in content["groups"]:
        for rule in group["rules"]:
            rule |= {key: shortened(rule[key]) for key in ("expr", "for") if key in rule}
    path.write_text(yaml.safe_dump(content))


@contextmanager
def program(name: str, package: str, *options: str, ready: str, folder: Path) -> Iterator[None]:
    """Run a server until the end; it must answer `ready` soon. Its log is in the folder."""
    command = shutil.which(name)
    if command is None:
        pytest.skip(f"NOT RUN: needs {name} (Debian package {package})")
    log = folder / f"{name}.log"
    with log.open("w") as out:
        process = subprocess.Popen([command, *options], cwd=folder, stdout=out, stderr=subprocess.STDOUT)
    try:

        def is_ready() -> bool:
            assert process.poll() is None, f"{name} ended:\n{log.read_text()[-2000:]}"
            try:
                fetch(ready)
            except (OSError, urllib.error.HTTPError):
                return False
            return True

        wait_until(is_ready, timeout_s=_STARTS_WITHIN_S, what=name)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class Webhook:
    """A receiver of alerts: everything that came, oldest first."""

    url: str
    received: list[dict[str, Any]] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)

    def take(self, path: str, content: Mapping[str, Any]) -> None:
        with self._news:
            self.received += [{"path": path, **alert} for alert in content["alerts"]]
            self._news.notify_all()

    def wait_for(self, name: str, *, timeout_s: float = 60.0, **labels: str) -> dict[str, Any]:
        """Return the first alert of a name with these labels; wait for it."""

        def find() -> dict[str, Any] | None:
            wanted = {"alertname": name, **labels}.items()
            return next((alert for alert in self.received if wanted <= alert["labels"].items()), None)

        with self._news:
            found = self._news.wait_for(find, timeout_s)
        assert found is not None, f"no {name} within {timeout_s:g} s, but {[a['labels'] for a in self.received]}"
        return found


@dataclass(frozen=True)
class Alertmanager:
    """A running Alertmanager."""

    url: str

    def post(self, *labels: Mapping[str, str]) -> None:
        """Tell it of alerts that fire."""
        body = json.dumps([{"labels": dict(each)} for each in labels]).encode()
        request = urllib.request.Request(f"{self.url}/api/v2/alerts", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=10).close()

    def alerts(self) -> list[dict[str, Any]]:
        """Return every alert with its state."""
        return list(fetch(f"{self.url}/api/v2/alerts"))


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of an instant query."""
        return list(self._ask("query", query=expression)["result"])

    def query_range(self, expression: str, *, last_s: float = 300.0, step_s: float = 1.0) -> list[dict[str, Any]]:
        """Return the result of a range query up to now."""
        now = time.time()
        return list(self._ask("query_range", query=expression, start=now - last_s, end=now, step=step_s)["result"])

    def exemplars(self, expression: str) -> list[dict[str, Any]]:
        """Return the exemplars of the last ten minutes."""
        now = time.time()
        return list(self._ask("query_exemplars", query=expression, start=now - 600, end=now))

    def _ask(self, what: str, **parameters: Any) -> Any:
        return fetch(f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}")["data"]


@dataclass(frozen=True)
class RunningService:
    """A service with trainer and API, on topics of its own."""

    service: Service
    stream: Stream

    @property
    def scorer_port(self) -> int:
        return self.service.port

    @property
    def trainer_port(self) -> int:
        assert self.service.trainer is not None
        return self.service.trainer.status.port

    @property
    def api_port(self) -> int:
        assert self.service.api is not None
        return self.service.api.port


@pytest.fixture(scope="module")
def start_service(
    embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., RunningService]]:
    """Give what starts a service that has scored its first records; keywords change sections of its settings."""
    with ExitStack() as stack:

        def start(n_records: int = 600, **overrides: Mapping[str, Any]) -> RunningService:
            stream = Stream(
                embedded_broker.bootstrap_servers, f"test-{uuid.uuid4().hex[:12]}", tmp_path_factory.mktemp("service")
            )
            labels_topic = f"{stream.topic}-labels"
            outputs = (stream.scores_topic, stream.alerts_topic, stream.dead_letter_topic, labels_topic)
            embedded_broker.create_topics({stream.topic: 2, **dict.fromkeys(outputs, 1)})
            overrides["labels"] = {"topic": labels_topic}
            overrides["api"] = {"enabled": True} | dict(overrides.get("api", {}))
            service = Service(check_settings(stream.content(**overrides)), has_api=True)
            stack.enter_context(running(service))
            stream.produce(make_values(n_records))
            started = RunningService(service, stream)
            wait_until(lambda: stream.count() >= n_records, timeout_s=90, what="the first verdicts")
            wait_until(lambda: started.trainer_port and started.api_port, timeout_s=60, what="trainer and API")
            return started

        yield start


@pytest.fixture(scope="module")
def running_service(start_service: Callable[..., RunningService]) -> RunningService:
    """A service that has scored 600 records and trains only when asked."""
    return start_service()


@pytest.fixture(scope="module")
def webhook() -> Iterator[Webhook]:
    """A receiver of what Alertmanager sends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.take(self.path, content)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Webhook(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def alertmanager(webhook: Webhook, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alertmanager]:
    """Our example of an Alertmanager; its receivers are paths of the webhook."""
    folder, port = tmp_path_factory.mktemp("alertmanager"), free_port()
    text = (DEPLOY / "alertmanager" / "alertmanager.yml").read_text().replace("http://localhost:9095", webhook.url)
    text = re.sub(r"(group_wait|group_interval): \w+", r"\1: 1s", text)
    (folder / "alertmanager.yml").write_text(text)
    options = ("--config.file=alertmanager.yml", "--storage.path=data", "--cluster.listen-address=")
    url = f"http://127.0.0.1:{port}"
    with program(
        *("prometheus-alertmanager", "prometheus-alertmanager", *options, f"--web.listen-address=127.0.0.1:{port}"),
        ready=f"{url}/-/ready",
        folder=folder,
    ):
        yield Alertmanager(url)


@pytest.fixture(scope="module")
def prometheus(
    running_service: RunningService, alertmanager: Alertmanager, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Our example of a Prometheus, with our rules, on the running service; it has scraped all of it."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["global"]["external_labels"]["srr_page_url"] = f"http://127.0.0.1:{running_service.api_port}"
    ports = {"scorer": running_service.scorer_port, "trainer": running_service.trainer_port}
    for job in config["scrape_configs"]:
        role = job["job_name"].removeprefix("srr-stream-")
        job["static_configs"] = [{"targets": [f"127.0.0.1:{ports[role]}"]}]
    config["alerting"]["alertmanagers"] = [
        {"static_configs": [{"targets": [alertmanager.url.removeprefix("http://")]}]}
    ]
    write_rules(folder / "rules.yml")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{port}"
    options = ("--config.file=prometheus.yml", "--storage.tsdb.path=data", "--enable-feature=exemplar-storage")
    with program(
        *("prometheus", "prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"),
        ready=f"{url}/-/ready",
        folder=folder,
    ):
        made = Prometheus(url)
        wait_until(lambda: len(made.query("srr_build_info")) == len(ports), what="a scrape of scorer and trainer")
        yield made
