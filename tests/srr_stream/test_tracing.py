"""A sender's trace goes on into the alert, with and without spans; a collector that is away disturbs nobody."""

from __future__ import annotations

import gzip
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry

from consumers.decoding import JsonDecoder
from consumers.delivery import AtLeastOnce
from consumers.errors import LibraryMissing
from consumers.logs import MemoryLog
from consumers.records import Field, RecordSchema, StoredRecord
from consumers.sinks.memory import MemorySink
from consumers.sources.memory import MemorySource
from models.detector import Scores
from srr_stream.assembly import make_tracing
from srr_stream.health import Health
from srr_stream.loading import check_settings
from srr_stream.metrics import ScorerMetrics
from srr_stream.pace import Pace
from srr_stream.scorer import Scorer
from srr_stream.service import Service
from srr_stream.tracing import NoSpans, Spans, Tracing, make_spans, trace_headers

Stream = Any
Header = tuple[str, bytes | None]

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01".encode()
UNSAMPLED = f"00-{TRACE}-{PARENT}-00".encode()
LATER = f"01-{TRACE}-{PARENT}-01-what-nobody-knows-yet".encode()


def record(*headers: Header, offset: int = 0, value: bytes = b'{"x": 1}') -> StoredRecord:
    return StoredRecord("requests", 1, offset, 0, b"key", value, headers)


# --- what is handed on


@pytest.mark.parametrize("value", [TRACEPARENT, UNSAMPLED, LATER])
def test_a_traceparent_is_handed_on_as_it_is(value: bytes) -> None:
    assert trace_headers(record(("other", b"1"), ("traceparent", value))) == [("traceparent", value)]


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"what?",
        TRACEPARENT.upper(),
        TRACEPARENT + b"-more",
        TRACEPARENT[:-1],
        b"ff" + TRACEPARENT[2:],
        f"00-{'0' * 32}-{PARENT}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        LATER + b"\xff",
        LATER + b"x" * 1000,
    ],
)
def test_what_is_no_traceparent_is_left_out_and_its_tracestate_with_it(value: bytes | None) -> None:
    assert trace_headers(record(("traceparent", value), ("tracestate", b"vendor=1"))) == []


def test_a_tracestate_goes_along_if_it_can_be_one() -> None:
    assert trace_headers(record(("traceparent", TRACEPARENT), ("tracestate", b"vendor=1"))) == [
        ("traceparent", TRACEPARENT),
        ("tracestate", b"vendor=1"),
    ]
    for state in (None, b"", b"a=\xff", b"a=" + b"1" * 511):
        assert trace_headers(record(("traceparent", TRACEPARENT), ("tracestate", state))) == [
            ("traceparent", TRACEPARENT)
        ]


def test_of_several_the_last_counts() -> None:
    headers = [("traceparent", UNSAMPLED), ("traceparent", TRACEPARENT)]
    assert trace_headers(record(*headers)) == [("traceparent", TRACEPARENT)]


# --- through the scorer


class Threshold:
    """A model that flags what is above 10."""

    takes_pictures = False
    false_alarm_rate = 0.01

    def score(self, columns: dict[str, Any]) -> Scores:
        x = columns["x"]
        return Scores(x, 1 / (1 + x), x / 10, x > 10)

    def explain(self, columns: dict[str, Any], n_top: int) -> list[list[Any]]:
        return [[] for _ in columns["x"]]


def scored(values: Sequence[tuple[float, Sequence[Header]]], tracing: Tracing | None) -> Any:
    """Return what a scorer made of records that have a value and headers."""
    log = MemoryLog()
    for x, headers in values:
        log.append("requests", json.dumps({"x": x}).encode(), headers=headers)
    source, sink = MemorySource(log, max_batch=100), MemorySink()
    live = SimpleNamespace(model=Threshold(), version=7)
    scorer = Scorer(
        source,
        JsonDecoder(RecordSchema((Field("x"),))),
        SimpleNamespace(current=live),  # type: ignore[arg-type]  # all that is asked of it
        AtLeastOnce(source, sink),
        pace=Pace(100),
        metrics=ScorerMetrics(CollectorRegistry()),
        health=Health(live_timeout_s=60),
        tracing=tracing,
    )
    scorer.turn()
    (verdicts,) = sink.flushed
    return verdicts


def test_without_spans_a_flagged_record_hands_its_trace_on_and_the_others_nothing() -> None:
    verdicts = scored([(1, [("traceparent", TRACEPARENT)]), (99, [("traceparent", TRACEPARENT)]), (99, [])], None)
    assert verdicts.trace_headers == {1: [("traceparent", TRACEPARENT)], 2: []}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[Spans]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    made = Spans(provider, group_id="a-group")
    yield made
    made.close()


def test_with_spans_there_is_one_below_the_senders_for_each_flagged_record(
    spans: Spans, exporter: InMemorySpanExporter
) -> None:
    before = time.time_ns()
    headers = [("traceparent", TRACEPARENT), ("tracestate", b"vendor=1")]
    verdicts = scored([(1, headers), (20, headers), (30, [])], spans)
    first, second = exporter.get_finished_spans()
    assert verdicts.trace_headers[1] == [("traceparent", parent_of(first)), ("tracestate", b"vendor=1")]
    assert verdicts.trace_headers[2] == [("traceparent", parent_of(second))]
    assert first.context is not None
    assert first.parent is not None
    assert f"{first.context.trace_id:032x}" == TRACE
    assert f"{first.parent.span_id:016x}" == PARENT
    assert second.parent is None
    assert (first.name, first.kind) == ("srr_stream.flag", SpanKind.CONSUMER)
    assert first.start_time is not None
    assert first.end_time is not None
    assert before <= first.start_time <= first.end_time <= time.time_ns()
    assert dict(first.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.type": "process",
        "messaging.operation.name": "flag",
        "messaging.destination.name": "requests",
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": 1,
        "messaging.consumer.group.name": "a-group",
        "messaging.message.id": "requests-0-1",
        "srr.version": 7,
        "srr.severity": 2.0,
    }


def parent_of(span: ReadableSpan) -> bytes:
    assert span.context is not None
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}".encode()


def test_the_value_of_an_alert_is_the_same_with_and_without_spans(spans: Spans) -> None:
    from consumers.sinks.serialization import verdict_bodies

    values = [(99, [("traceparent", TRACEPARENT)])]
    assert list(verdict_bodies(scored(values, spans))) == list(verdict_bodies(scored(values, None)))


def test_a_trace_that_the_sender_does_not_sample_is_not_sampled_here(
    spans: Spans, exporter: InMemorySpanExporter
) -> None:
    verdicts = scored([(99, [("traceparent", UNSAMPLED)])], spans)
    ((name, value),) = verdicts.trace_headers[0]
    assert name == "traceparent"
    assert value.startswith(f"00-{TRACE}-".encode())
    assert value.endswith(b"-00")
    assert exporter.get_finished_spans() == ()


def test_a_broken_traceparent_begins_a_trace_of_its_own(spans: Spans, exporter: InMemorySpanExporter) -> None:
    scored([(99, [("traceparent", b"what?")])], spans)
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_a_span_around_others_is_their_parent_and_notes_what_was_raised(
    spans: Spans, exporter: InMemorySpanExporter
) -> None:
    with (
        pytest.raises(MemoryError),
        spans.span("srr_stream.training", run="a1b2"),
        spans.span("srr_stream.training.read"),
    ):
        raise MemoryError("too little")
    read, training = exporter.get_finished_spans()
    assert read.parent is not None
    assert training.context is not None
    assert read.parent.span_id == training.context.span_id
    assert (training.attributes or {})["srr.run"] == "a1b2"
    assert training.status.status_code is StatusCode.ERROR
    assert training.events[0].name == "exception"


# --- settings


def test_without_tracing_in_the_settings_no_span_is_made(stream: Stream) -> None:
    assert isinstance(make_tracing(check_settings(stream.content()), "scorer"), NoSpans)


def test_with_it_and_without_the_extra_the_service_ends_at_the_start_and_says_what_to_do(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    service = Service(check_settings(stream.content(tracing={"enabled": True})))
    with pytest.raises(LibraryMissing, match=r"tracing\.enabled: is true.*pip install 'srr-stream\[otel\]'"):
        service.run(lambda: False)


def test_the_service_has_the_name_of_its_role_unless_it_is_given_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def name_of(spans: Spans) -> object:
        spans.close()
        return spans._provider.resource.attributes["service.name"]

    assert name_of(make_spans("trainer", group_id="g")) == "srr-stream-trainer"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "fraud")
    assert name_of(make_spans("trainer", group_id="g")) == "fraud"


def test_when_the_sdk_is_disabled_the_senders_trace_goes_on_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    spans = make_spans("scorer", group_id="g")
    headers = spans.flagged(record(("traceparent", TRACEPARENT)), version=1, severity=2.0, began_ns=1)
    spans.close()
    assert list(headers) == [("traceparent", TRACEPARENT)]


# --- collectors


class Collector:
    """An OTLP receiver."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        """Service and span."""
        self.has_some = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(self.path, body)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = {item.key: item.value.string_value for item in resource.resource.attributes}
            self.spans += [(about["service.name"], s) for scope in resource.scope_spans for s in scope.spans]
        self.has_some.set()

    def names(self) -> set[tuple[str, str]]:
        return {(service, span.name) for service, span in self.spans}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def test_a_flagged_record_of_the_stream_and_a_training_reach_a_collector_and_the_alert_names_its_span(
    running: Any,
    stream: Stream,
    collector: Collector,
    make_values: Callable[..., list[bytes]],
    wait_until: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kafka import KafkaProducer

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    stream.produce(make_values(400))
    with running(Service(check_settings(stream.content(tracing={"enabled": True})))):
        wait_until(lambda: stream.count() == 400, what="a model")
        producer = KafkaProducer(bootstrap_servers=stream.bootstrap_servers)
        wild = b'{"duration_ms": 9e5, "bytes_sent": 1, "load": 0.5, "route": "/"}'
        headers = [("traceparent", TRACEPARENT), ("tracestate", b"vendor=1")]
        sent = producer.send(stream.topic, wild, key=b"k", headers=headers).get(20)
        producer.close(5)
        wait_until(lambda: stream.count() == 401, what="its verdict")
    own_id = f"{sent.topic}-{sent.partition}-{sent.offset}"
    wait_until(lambda: ("srr-stream-trainer", "srr_stream.training") in collector.names(), what="the training's span")
    (span,) = (s for _, s in collector.spans if s.trace_id.hex() == TRACE)
    assert span.parent_span_id.hex() == PARENT
    assert own_id in {item.value.string_value for item in span.attributes}
    (alert,) = (r for r in stream.read(stream.alerts_topic) if json.loads(r.value)["id"] == own_id)
    sent_on = dict(alert.headers)
    assert sent_on["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01".encode()
    assert sent_on["tracestate"] == b"vendor=1"
    assert sent_on["ce_id"] == own_id.encode()
    stages = {name.removeprefix("srr_stream.training.") for _, name in collector.names() if "training." in name}
    assert stages == {"read", "train", "judge", "publish"}


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_a_collector_that_is_away_or_silent_is_not_waited_for(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "silent":  # it takes the connection and never answers
            listener.listen(8)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "32")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
        spans = make_spans("scorer", group_id="g")
        started = time.perf_counter()
        verdicts = scored([(99, [("traceparent", TRACEPARENT)])] * 60, spans)
        scoring_s = time.perf_counter() - started
        assert len(verdicts.trace_headers) == 60
        assert np.all([len(headers) == 1 for headers in verdicts.trace_headers.values()])
        started = time.perf_counter()
        spans.close()
        spans.close()
        closing_s = time.perf_counter() - started
    assert scoring_s < 5.0
    assert closing_s < 3.0
    if kind == "closed":  # nothing goes on trying behind the next test's back
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("spans", "Otel"))]
