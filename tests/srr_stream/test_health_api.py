"""Health and its endpoint: what Prometheus and a probe are told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.request import Request, urlopen

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from srr_stream.api import HttpEndpoint
from srr_stream.health import Health
from srr_stream.metrics import ScorerMetrics

Ask = Callable[[int, str], tuple[int, str]]


class Bench:
    """An endpoint with a clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.registry = CollectorRegistry()
        self.metrics = ScorerMetrics(self.registry)
        self.health = Health(live_timeout_s=60, clock=lambda: self.now)
        self.endpoint = HttpEndpoint("127.0.0.1", 0, registry=self.registry, health=self.health)

    @property
    def port(self) -> int:
        return self.endpoint.port


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.endpoint.close()


def test_a_loop_is_live_until_it_has_been_silent_for_the_timeout() -> None:
    now = 0.0
    health = Health(live_timeout_s=60, clock=lambda: now)
    assert health.is_live
    now = 59.9
    assert health.is_live
    now = 60.0
    assert not health.is_live
    assert health.silent_for_s == 60.0
    health.beat()
    assert health.is_live


def test_readiness_says_nothing_about_liveness_nor_the_other_way_round() -> None:
    now = 0.0
    health = Health(live_timeout_s=60, clock=lambda: now)
    health.ready("scoring with version 3")
    now = 1000.0
    assert (health.is_ready, health.is_live) == (True, False)
    health.beat()
    health.not_ready("the broker is away")
    assert (health.is_ready, health.is_live) == (False, True)


def test_metrics_are_what_prometheus_reads(bench: Bench, ask: Ask) -> None:
    bench.metrics.records_scored.labels("requests", "flagged").inc(7)
    status, text = ask(bench.port, "/metrics")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert status == 200
    assert samples["srr_records_scored_total", "flagged", "requests"] == 7
    assert samples["srr_severity_bucket", "+Inf"] == 0


def test_scrapes_that_come_together_get_one_text_and_each_the_format_that_it_asks_for(bench: Bench) -> None:
    written = 0

    class Counted(Collector):
        def collect(self) -> Iterator[GaugeMetricFamily]:
            nonlocal written
            written += 1
            yield GaugeMetricFamily("written", "How often.", value=written)

    def scrape(accept: str = "text/plain") -> tuple[str, bytes]:
        request = Request(f"http://127.0.0.1:{bench.port}/metrics", headers={"Accept": accept})
        with urlopen(request, timeout=30) as answer:
            return answer.headers["Content-Type"], answer.read()

    bench.registry.register(Counted())
    written = 0
    started = time.monotonic()
    first = scrape()
    again = [scrape() for _ in range(20)]
    n_windows = 1 + int((time.monotonic() - started) / 0.25)
    assert first[1] in {body for _, body in again} or n_windows > 1
    assert 1 <= written <= n_windows
    kind, body = scrape("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    until = time.monotonic() + 10
    while scrape() == first:
        assert time.monotonic() < until, "an old text for ever"


def test_livez_is_alive_while_the_loop_goes_round_and_says_how_long_it_has_been_silent(bench: Bench, ask: Ask) -> None:
    assert ask(bench.port, "/livez") == (200, "alive\n")
    bench.now += 75
    assert ask(bench.port, "/livez") == (503, "the loop has been silent for 75 s\n")
    bench.health.beat()
    assert ask(bench.port, "/livez") == (200, "alive\n")


def test_readyz_tells_the_reason_either_way(bench: Bench, ask: Ask) -> None:
    assert ask(bench.port, "/readyz") == (503, "starting\n")
    bench.health.not_ready("417 of 2000 records, α not yet known")
    assert ask(bench.port, "/readyz") == (503, "417 of 2000 records, α not yet known\n")
    bench.health.ready("scoring with version 3")
    assert ask(bench.port, "/readyz") == (200, "scoring with version 3\n")


@pytest.mark.parametrize("path", ["/", "/metricsx", "/livez/", "/v1/model", "/../etc/passwd"])
def test_any_other_path_is_not_found_and_names_those_there_are(bench: Bench, ask: Ask, path: str) -> None:
    assert ask(bench.port, path) == (404, "there are /metrics, /livez and /readyz\n")


def test_a_client_that_says_nothing_does_not_keep_others_waiting(bench: Bench, ask: Ask) -> None:
    with socket.create_connection(("127.0.0.1", bench.port)):
        assert ask(bench.port, "/livez")[0] == 200


def test_many_can_ask_at_once(bench: Bench) -> None:
    statuses: list[int] = []

    def scrape() -> None:
        for _ in range(5):
            with urlopen(f"http://127.0.0.1:{bench.port}/metrics", timeout=30) as answer:
                answer.read()
                statuses.append(answer.status)

    threads = [threading.Thread(target=scrape) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 40


def test_requests_are_not_logged(bench: Bench, ask: Ask, capfd: pytest.CaptureFixture[str]) -> None:
    ask(bench.port, "/livez")
    ask(bench.port, "/nothing")
    assert capfd.readouterr() == ("", "")


def test_a_port_that_is_taken_is_named_with_what_to_change() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .+; change http\.\*_port"):
            HttpEndpoint("127.0.0.1", port, registry=CollectorRegistry(), health=Health(live_timeout_s=1))


def test_a_closed_endpoint_answers_no_more_and_frees_its_port(ask: Ask) -> None:
    bench = Bench()
    bench.endpoint.close()
    assert ask(bench.port, "/livez") == (0, "")
    again = HttpEndpoint("127.0.0.1", bench.port, registry=bench.registry, health=bench.health)
    assert again.port == bench.port
    again.close()


def test_closing_twice_is_fine_and_leaves_no_thread() -> None:
    bench = Bench()
    bench.endpoint.close()
    bench.endpoint.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "http"]


def test_becoming_ready_and_not_ready_is_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    health = Health(live_timeout_s=60)
    with caplog.at_level("INFO"):
        for _ in range(3):
            health.not_ready("waiting for records")
        for _ in range(3):
            health.ready("scoring 2 partitions")
        for _ in range(3):
            health.not_ready("no broker")
    assert caplog.messages == ["ready: scoring 2 partitions", "not ready: no broker"]


# What a role says of itself


def test_statusz_is_what_the_role_says_with_its_history_if_that_is_asked_for(ask: Ask) -> None:
    asked: list[bool] = []

    def say(with_history: bool) -> dict[str, object]:
        asked.append(with_history)
        return {"role": "scorer", "ready": True}

    health = Health(live_timeout_s=60)
    endpoint = HttpEndpoint("127.0.0.1", 0, registry=CollectorRegistry(), health=health, statusz=say)
    try:
        assert ask(endpoint.port, "/statusz") == (200, '{"role":"scorer","ready":true}')
        assert ask(endpoint.port, "/statusz?history=1")[0] == 200
        assert asked == [False, True]
        assert ask(endpoint.port, "/nothing")[1] == "there are /metrics, /livez, /readyz and /statusz\n"
    finally:
        endpoint.close()


def test_without_a_role_to_say_anything_there_is_no_statusz(bench: Bench, ask: Ask) -> None:
    assert ask(bench.port, "/statusz") == (404, "there are /metrics, /livez and /readyz\n")
