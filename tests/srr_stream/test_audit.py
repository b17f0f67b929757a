"""The audit as a person calls it, over topics of real brokers."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from click.testing import CliRunner, Result
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.structs import OffsetAndMetadata

from srr_stream.cli import main
from srr_stream.loading import check_settings
from srr_stream.service import Service

Stream = Any
MakeStream = Callable[[Any], Stream]
EXACTLY_ONCE = {"mode": "exactly_once"}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["--log-level", "error", *map(str, arguments)], catch_exceptions=False)


def audit(stream: Stream, *arguments: object, expected: int = 0, **sections: Any) -> dict[str, Any]:
    """Return the document that the audit prints, once its exit code is the expected one."""
    result = call("audit", "-c", stream.write_settings(**sections), "--json", *arguments)
    assert result.exit_code == expected, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def kinds(document: dict[str, Any]) -> dict[str, int]:
    return {finding["kind"]: finding["n"] for finding in document["findings"]}


def verdict(stream: Stream, offset: int, **changes: Any) -> bytes:
    body = {
        "id": f"{stream.topic}-0-{offset}",
        "topic": stream.topic,
        "partition": 0,
        "offset": offset,
        "version": 1,
        "flagged": False,
        "score": 1.0,
        "p_value": 0.5,
        "severity": 0.1,
    }
    return json.dumps(body | changes).encode()


@contextmanager
def writing(stream: Stream, **options: Any) -> Iterator[KafkaProducer]:
    producer = KafkaProducer(bootstrap_servers=stream.bootstrap_servers, **options)
    try:
        if "transactional_id" in options:
            producer.init_transactions()
        yield producer
    finally:
        producer.close(5)


def write(stream: Stream, topic: str, values: Sequence[bytes], **fields: Any) -> None:
    with writing(stream) as producer:
        futures = [producer.send(topic, value, partition=0, **fields) for value in values]
        for future in futures:
            future.get(30)


def dead_letter_headers(stream: Stream, offset: int) -> list[tuple[str, bytes]]:
    about = {"srr-reason": "not_json", "srr-topic": stream.topic, "srr-partition": "0", "srr-offset": str(offset)}
    return [(name, value.encode()) for name, value in about.items()]


def commit(stream: Stream, offset: int) -> None:
    consumer = KafkaConsumer(
        bootstrap_servers=stream.bootstrap_servers, group_id=f"{stream.topic}-group", enable_auto_commit=False
    )
    try:
        consumer.commit({TopicPartition(stream.topic, 0): OffsetAndMetadata(offset, "", -1)})
    finally:
        consumer.close()


def serve(stream: Stream, n_records: int, wait_until: Callable[..., Any], **sections: Any) -> None:
    """Let the service answer so many records, then stop it."""
    service = Service(check_settings(stream.content(**sections)))
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(stop.is_set,))
    thread.start()
    try:
        wait_until(
            lambda: len(stream.read(stream.scores_topic)) + len(stream.read(stream.dead_letter_topic)) >= n_records,
            what="an answer to every record",
        )
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("broker", "mode"),
    [
        pytest.param("embedded_broker", "at_least_once", id="embedded"),
        pytest.param("apache_kafka", "at_least_once", id="apache", marks=pytest.mark.kafka),
        pytest.param("apache_kafka", "exactly_once", id="apache-exactly-once", marks=pytest.mark.kafka),
    ],
)
def test_what_the_service_answered_is_complete_and_every_verdict_is_what_its_model_says(
    broker: str,
    mode: str,
    request: pytest.FixtureRequest,
    make_stream: MakeStream,
    make_values: Callable[..., list[bytes]],
    wait_until: Callable[..., Any],
) -> None:
    stream = make_stream(request.getfixturevalue(broker))
    sections: dict[str, Any] = {"delivery": {"mode": mode}, "input": {"session_timeout": "6s"}}
    sections["input"] = stream.content()["input"] | sections["input"]
    stream.produce([*make_values(400), b"no JSON", b""])
    serve(stream, 402, wait_until, **sections)
    document = audit(stream, "--scores", **sections)
    assert document["findings"] == []
    assert sum(line["n_scored"] for line in document["partitions"]) == 400
    assert sum(line["n_dead_lettered"] for line in document["partitions"]) == 2
    assert sum(line["n_waiting"] for line in document["partitions"]) == 0
    assert document["scores"] == {"n_equal": 400, "n_different": 0, "n_unverifiable": {}}


def test_a_verdict_that_its_model_does_not_give_is_found_and_a_pruned_version_is_unverifiable(
    stream: Stream, make_values: Callable[..., list[bytes]], wait_until: Callable[..., Any]
) -> None:
    stream.produce(make_values(400))
    serve(stream, 400, wait_until)
    forged = stream.verdicts()[7]
    score = forged["score"]
    write(stream, stream.scores_topic, [json.dumps(forged | {"score": score + abs(score) * 1e-15}).encode()])
    document = audit(stream, "--scores", expected=5)
    assert kinds(document) == {"repeated": 1, "differing": 1, "score differs": 1}
    assert "by version 1, score is" in document["findings"][-1]["examples"][0]["detail"]
    shutil.rmtree(stream.folder / "registry" / "versions" / "1")
    scores = audit(stream, "--scores", expected=5)["scores"]
    assert scores == {"n_equal": 0, "n_different": 0, "n_unverifiable": {"version 1 is not in the registry": 401}}


def test_a_lost_record_exits_5_and_is_named_for_people(stream: Stream) -> None:
    write(stream, stream.topic, [b"{}"] * 5)
    write(stream, stream.scores_topic, [verdict(stream, offset) for offset in (0, 1, 3, 4)])
    commit(stream, 5)
    result = call("audit", "-c", stream.write_settings())
    assert result.exit_code == 5
    assert f"{stream.topic}-0-2: neither verdict nor dead letter" in result.stdout
    assert "the promise is broken: 1 lost" in result.stdout


def test_dead_letters_answer_and_notes_of_sending_again_do_not(stream: Stream) -> None:
    write(stream, stream.topic, [b"{}"] * 3)
    write(stream, stream.scores_topic, [verdict(stream, offset) for offset in (0, 1)])
    write(stream, stream.dead_letter_topic, [b"x"], headers=dead_letter_headers(stream, 2))
    write(stream, stream.dead_letter_topic, [b""], headers=[("srr-requeued", f"{stream.topic}-0-2".encode())])
    commit(stream, 3)
    assert audit(stream)["findings"] == []


def test_a_verdict_that_a_label_changed_between_two_attempts_is_no_fault(stream: Stream) -> None:
    write(stream, stream.topic, [b"{}"] * 3)
    values = [verdict(stream, offset) for offset in range(3)]
    near = f"{stream.topic}-0-0"
    flagged = verdict(stream, 1, flagged=True)
    write(stream, stream.scores_topic, [values[0], flagged, verdict(stream, 1, known_normal=near), values[2]])
    write(stream, stream.alerts_topic, [flagged])
    commit(stream, 3)
    assert kinds(audit(stream)) == {"repeated": 1, "relabelled": 1}
    for wrong in ({"known_normal": near, "flagged": True}, {"known_normal": 1}):
        write(stream, stream.scores_topic, [verdict(stream, 2, **wrong)])
    assert kinds(audit(stream, expected=5)) == {"repeated": 1, "relabelled": 1, "malformed": 2}


def test_what_is_no_verdict_is_malformed_and_a_stranger_unexplained(stream: Stream) -> None:
    write(stream, stream.topic, [b"{}"])
    others = [b"no JSON", b"[]", b'{"topic": 1}', verdict(stream, 0, id="another"), verdict(stream, 0, flagged=1)]
    write(stream, stream.scores_topic, [verdict(stream, 0), *others, verdict(stream, 5)])
    write(stream, stream.dead_letter_topic, [b"x"], headers=[("srr-topic", b"t")])
    commit(stream, 1)
    assert kinds(audit(stream, expected=5)) == {"malformed": 6, "unexplained": 1}


def test_what_came_in_after_the_last_commit_is_waiting(stream: Stream) -> None:
    write(stream, stream.topic, [b"{}"] * 5)
    write(stream, stream.scores_topic, [verdict(stream, offset) for offset in range(3)])
    commit(stream, 3)
    document = audit(stream)
    assert document["findings"] == []
    assert sum(line["n_waiting"] for line in document["partitions"]) == 2


def test_only_the_newest_offsets_are_checked_if_asked(stream: Stream) -> None:
    write(stream, stream.topic, [b"{}"] * 10)
    write(stream, stream.scores_topic, [verdict(stream, offset) for offset in range(4, 10)])
    commit(stream, 10)
    assert kinds(audit(stream, expected=5)) == {"lost": 4}
    assert audit(stream, "--last", 6)["findings"] == []


def test_without_a_topic_of_all_verdicts_the_audit_says_what_it_cannot_check(stream: Stream) -> None:
    write(stream, stream.topic, [b"{}"] * 5)
    write(stream, stream.alerts_topic, [verdict(stream, 3, flagged=True)])
    output = {name: value for name, value in stream.content()["output"].items() if name != "scores_topic"}
    path = stream.write_settings()
    path.write_text(json.dumps(stream.content() | {"output": output}))
    result = call("audit", "-c", path)
    assert result.exit_code == 0
    assert "records that are not flagged leave no trace" in result.stdout
    assert "kept as far as could be checked" in result.stdout
    refused = call("audit", "--scores", "-c", path)
    assert refused.exit_code == 2
    assert "output.scores_topic" in refused.stderr


def test_the_embedded_brokers_aborted_verdicts_are_seen_through(stream: Stream) -> None:
    write(stream, stream.topic, [b"{}"] * 3)
    with writing(stream, transactional_id=f"{stream.topic}-writer") as producer:
        for is_kept in (False, True):
            producer.begin_transaction()
            for offset in range(3):
                producer.send(stream.scores_topic, verdict(stream, offset), partition=0)
            producer.flush()
            producer.commit_transaction() if is_kept else producer.abort_transaction()
    commit(stream, 3)
    # It gives aborted records to readers of committed ones: a service on it cannot promise exactly once.
    assert kinds(audit(stream, expected=5, delivery=EXACTLY_ONCE)) == {"doubled": 3, "uncommitted visible": 3}


@pytest.mark.kafka
def test_aborted_verdicts_are_no_doubles_on_apache_kafka(apache_kafka: Any, make_stream: MakeStream) -> None:
    stream = make_stream(apache_kafka)
    write(stream, stream.topic, [b"{}"] * 3)
    with writing(stream, transactional_id=f"{stream.topic}-writer") as producer:
        for is_kept in (False, True):
            producer.begin_transaction()
            for offset in range(3):
                producer.send(stream.scores_topic, verdict(stream, offset), partition=0)
            producer.send(stream.scores_topic, b"malformed, if it counted" if not is_kept else verdict(stream, 3))
            producer.flush()
            producer.commit_transaction() if is_kept else producer.abort_transaction()
    write(stream, stream.topic, [b"{}"])
    commit(stream, 4)
    for mode in ("exactly_once", "at_least_once"):
        document = audit(stream, delivery={"mode": mode})
        assert document["findings"] == []
        assert sum(line["n_scored"] for line in document["partitions"]) == 4


@pytest.mark.kafka
def test_a_double_in_two_transactions_breaks_exactly_once(apache_kafka: Any, make_stream: MakeStream) -> None:
    stream = make_stream(apache_kafka)
    write(stream, stream.topic, [b"{}"] * 3)
    with writing(stream, transactional_id=f"{stream.topic}-writer") as producer:
        for offsets in ((0, 1), (1, 2)):
            producer.begin_transaction()
            for offset in offsets:
                producer.send(stream.scores_topic, verdict(stream, offset), partition=0)
            producer.commit_transaction()
    commit(stream, 3)
    assert kinds(audit(stream, expected=5, delivery=EXACTLY_ONCE)) == {"doubled": 1}


@pytest.mark.kafka
def test_a_verdict_in_an_open_transaction_is_undecided_until_it_is_closed(
    apache_kafka: Any, make_stream: MakeStream
) -> None:
    stream = make_stream(apache_kafka)
    write(stream, stream.topic, [b"{}"] * 2)
    with writing(stream, transactional_id=f"{stream.topic}-writer") as producer:
        producer.begin_transaction()
        producer.send(stream.scores_topic, verdict(stream, 0), partition=0)
        producer.commit_transaction()
        producer.begin_transaction()
        producer.send(stream.scores_topic, verdict(stream, 1), partition=0)
        producer.flush()
        commit(stream, 2)
        document = audit(stream, delivery=EXACTLY_ONCE)
        producer.abort_transaction()
    assert document["findings"] == []
    assert sum(line["n_undecided"] for line in document["partitions"]) == 1
    assert kinds(audit(stream, expected=5, delivery=EXACTLY_ONCE)) == {"committed ahead": 1}


@pytest.mark.kafka
def test_input_that_its_sender_took_back_needs_no_answer_and_may_have_none(
    apache_kafka: Any, make_stream: MakeStream
) -> None:
    stream = make_stream(apache_kafka)
    with writing(stream, transactional_id=f"{stream.topic}-sender") as producer:
        for is_kept in (True, False):  # offsets 0, marker 1, 2, marker 3
            producer.begin_transaction()
            producer.send(stream.topic, b"{}", partition=0)
            producer.flush()
            producer.commit_transaction() if is_kept else producer.abort_transaction()
    write(stream, stream.scores_topic, [verdict(stream, 0)])
    commit(stream, 4)
    assert audit(stream)["findings"] == []
    assert kinds(audit(stream, expected=5, input=stream.content()["input"] | {"isolation_level": "read_uncommitted"}))
    write(stream, stream.scores_topic, [verdict(stream, 2)])
    assert kinds(audit(stream, expected=5)) == {"unexplained": 1}


@pytest.mark.kafka
def test_what_retention_took_from_the_input_is_not_lost(apache_kafka: Any, make_stream: MakeStream) -> None:
    stream = make_stream(apache_kafka)
    write(stream, stream.topic, [b"{}"] * 6)
    write(stream, stream.scores_topic, [verdict(stream, offset) for offset in (0, 3, 4, 5)])
    commit(stream, 6)
    assert kinds(audit(stream, expected=5)) == {"lost": 2}
    admin = KafkaAdminClient(bootstrap_servers=stream.bootstrap_servers)
    try:
        admin.delete_records({TopicPartition(stream.topic, 0): 3}, timeout_ms=20_000)
    finally:
        admin.close()
    document = audit(stream)
    assert document["findings"] == []
    assert sum(line["n_gone"] for line in document["partitions"]) == 1


def test_a_broker_that_is_away_exits_3(stream: Stream, free_port: int) -> None:
    away = {"bootstrap_servers": f"127.0.0.1:{free_port}", "connect_timeout": "1s"}
    result = call("audit", "-c", stream.write_settings(kafka=away))
    assert result.exit_code == 3
    assert "no answer from" in result.stderr


def test_the_audit_leaves_the_group_and_the_topics_as_they_are(stream: Stream) -> None:
    write(stream, stream.topic, [b"{}"] * 2)
    commit(stream, 0)
    before = [len(stream.read(topic)) for topic in (stream.topic, stream.scores_topic, stream.dead_letter_topic)]
    audit(stream)
    after = [len(stream.read(topic)) for topic in (stream.topic, stream.scores_topic, stream.dead_letter_topic)]
    assert before == after
    assert [line["committed"] for line in audit(stream)["partitions"]] == [0, None]


def test_the_exit_code_of_a_broken_promise_is_in_the_help() -> None:
    assert "5 audit found the promise of delivery broken" in CliRunner().invoke(main, ["--help"]).output
