"""The service's promise on a real Apache Kafka: both modes, and outputs that cannot be written for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient

from srr_stream.ledger import Kind, Ledger
from srr_stream.ledger.reader import read_books, read_committed_offsets
from srr_stream.loading import check_settings
from srr_stream.service import Service

pytestmark = pytest.mark.kafka


def content_of(stream: Any, mode: str, *, flush_timeout: str = "10s") -> Any:
    return stream.content(
        input={"session_timeout": "6s", "max_batch": 100},
        output={"flush_timeout": flush_timeout},
        delivery={"mode": mode},
        training={"on_drift": False},
    )


def committed(stream: Any) -> int:
    connection = {"bootstrap_servers": [stream.bootstrap_servers]}
    return sum(read_committed_offsets(connection, [stream.topic], f"{stream.topic}-group").values())


def ledger_of(stream: Any, mode: Any) -> Ledger:
    return read_books(
        {"bootstrap_servers": [stream.bootstrap_servers]},
        topics=[stream.topic],
        group_id=f"{stream.topic}-group",
        scores_topic=stream.scores_topic,
        alerts_topic=stream.alerts_topic,
        dead_letter_topic=stream.dead_letter_topic,
        mode=mode,
    ).check(mode, starts_late=False)


@pytest.fixture
def produce() -> Callable[[Any, list[bytes]], None]:
    def send(stream: Any, values: list[bytes]) -> None:
        producer = KafkaProducer(bootstrap_servers=stream.bootstrap_servers, acks="all")
        try:
            for i, value in enumerate(values):
                producer.send(stream.topic, value, key=b"%d" % i)
            producer.flush(30)
        finally:
            producer.close(5)

    return send


@pytest.mark.parametrize("mode", ["at_least_once", "exactly_once"])
def test_every_record_is_answered_once_and_in_order(
    running: Any, apache_kafka: Any, make_stream: Any, make_values: Any, wait_until: Any, produce: Any, mode: str
) -> None:
    stream = make_stream(apache_kafka)
    produce(stream, [*make_values(900), b"{torn", b"[]"])
    with running(Service(check_settings(content_of(stream, mode)))):
        wait_until(lambda: committed(stream) == 902, what="all offsets")
    ledger = ledger_of(stream, mode)
    assert ledger.findings == ()
    assert ledger.is_complete
    assert sum(line.n_scored or 0 for line in ledger.lines) == 900
    assert sum(line.n_dead_lettered for line in ledger.lines) == 2


def test_while_dead_letters_cannot_be_written_nothing_is_committed_and_it_goes_on_when_they_can(
    running: Any, apache_kafka: Any, make_stream: Any, make_values: Any, wait_until: Any, ask: Any, produce: Any
) -> None:
    stream = make_stream(apache_kafka)
    produce(stream, make_values(400))
    service = Service(check_settings(content_of(stream, "at_least_once", flush_timeout="3s")))
    admin = KafkaAdminClient(bootstrap_servers=stream.bootstrap_servers)
    try:
        with running(service):
            wait_until(lambda: committed(stream) == 400, what="all offsets")
            admin.delete_topics([stream.dead_letter_topic])
            produce(stream, [b"{torn", *make_values(50, seed=1)])
            wait_until(
                lambda: f"no topic {stream.dead_letter_topic}" in ask(service.port, "/readyz")[1], what="the reason"
            )
            assert ask(service.port, "/readyz")[0] == 503
            assert ask(service.port, "/livez")[0] == 200
            assert committed(stream) < 451
            apache_kafka.create_topics({stream.dead_letter_topic: 1})
            wait_until(lambda: committed(stream) == 451, what="all offsets after the repair")
            assert "srr_reconnects_total" in ask(service.port, "/metrics")[1]
    finally:
        admin.close()
    ledger = ledger_of(stream, "at_least_once")
    assert ledger.faults == ()
    assert sum(line.n_dead_lettered for line in ledger.lines) == 1


def test_a_writer_killed_in_the_middle_of_a_transaction_leaves_no_double(
    running: Any, apache_kafka: Any, make_stream: Any, make_values: Any, wait_until: Any, produce: Any, monkeypatch: Any
) -> None:
    """The same process goes on with the same transactional id, as a restarted one with an instance id does."""
    from consumers.delivery import ExactlyOnce
    from consumers.errors import SinkError

    stream = make_stream(apache_kafka)
    produce(stream, make_values(900))
    commit, n_failed = ExactlyOnce.commit, 0

    def fail_at_times(self: Any, positions: Any, while_waiting: Any) -> None:
        nonlocal n_failed
        if n_failed < 3:
            n_failed += 1
            raise SinkError("as if the brokers had not answered")
        commit(self, positions, while_waiting)

    monkeypatch.setattr(ExactlyOnce, "commit", fail_at_times)
    with running(Service(check_settings(content_of(stream, "exactly_once")))):
        wait_until(lambda: committed(stream) == 900, what="all offsets", timeout_s=60)
    assert n_failed == 3
    ledger = ledger_of(stream, "exactly_once")
    assert ledger.findings == ()
    assert ledger.finding(Kind.DOUBLED).n == 0
