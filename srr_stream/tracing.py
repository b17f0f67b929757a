"""Traces: what a record's ``traceparent`` header (W3C Trace Context) becomes, and spans for OpenTelemetry.

A sender's trace goes on into the alert whether or not spans are made here. With ``tracing.enabled`` there is a span for
every flagged record, below the sender's, and one for every training, with one below it for each stage. There is none
for a record that is not flagged, nor for a batch: nobody would look at so many. Where spans go, and how many are kept,
is said by OpenTelemetry's own ``OTEL_*`` variables.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from consumers.errors import LibraryMissing
from consumers.records import RawRecord, event_id
from srr_stream.logs import get_logger
from srr_stream.metrics import package_version

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

log = get_logger(__name__)

Header = tuple[str, bytes | None]

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-[\x20-\x7e]{0,400})?")
_TRACESTATE = re.compile(rb"[\x20-\x7e]{1,512}")
_SHUTDOWN_S = 2.0
"""For the spans that are still here; a collector that does not answer is not waited for longer."""


class Tracing(Protocol):
    """Says what an alert's trace headers are, and times what is worth a span."""

    def flagged(self, raw: RawRecord, *, version: int, severity: float, began_ns: int) -> Sequence[Header]:
        """Return the headers that the alert of a flagged record is given.

        `began_ns`: when its batch began to be scored, in ns since the epoch.
        """

    def span(self, name: str, **attributes: str | int | float) -> AbstractContextManager[None]:
        """Time what is done inside, as a part of what is timed around it."""

    def close(self) -> None:
        """Let what is still here go to the collector, for 2.5 s at most; twice is fine."""


class NoSpans:
    """Hand a record's trace on, and make no span."""

    def flagged(self, raw: RawRecord, *, version: int, severity: float, began_ns: int) -> Sequence[Header]:
        """Return the record's own trace headers."""
        return trace_headers(raw)

    def span(self, name: str, **attributes: str | int | float) -> AbstractContextManager[None]:
        """Time nothing."""
        return nullcontext()

    def close(self) -> None:
        """Have nothing to let go."""


class Spans:
    """Make spans with a provider of OpenTelemetry, which is closed with this.

    Parameters
    ----------
    group_id
        Of the consumer group, in every flagged record's span.
    exporter
        What the provider exports with, if that may have to be told to stop trying.
    """

    def __init__(self, provider: TracerProvider, *, group_id: str, exporter: SpanExporter | None = None) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("srr_stream", package_version())
        self._propagator = TraceContextTextMapPropagator()
        self._group_id = group_id
        self._exporter = exporter
        self._is_closed = False

    def flagged(self, raw: RawRecord, *, version: int, severity: float, began_ns: int) -> Sequence[Header]:
        """Make a span below the record's own, and return headers that name it.

        Whether it is kept is the sender's decision where there is one: an unsampled trace stays unsampled.
        """
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, set_span_in_context

        carried = trace_headers(raw)
        parent = self._propagator.extract({name: (value or b"").decode() for name, value in carried}, Context())
        attributes: dict[str, str | int | float] = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.operation.name": "flag",
            "messaging.destination.name": raw.topic,
            "messaging.destination.partition.id": str(raw.partition),
            "messaging.kafka.offset": raw.offset,
            "messaging.consumer.group.name": self._group_id,
            "messaging.message.id": event_id(raw),
            "srr.version": version,
            "srr.severity": severity,
        }
        span = self._tracer.start_span(
            "srr_stream.flag", parent, kind=SpanKind.CONSUMER, attributes=attributes, start_time=began_ns
        )
        span.end()
        headers: dict[str, str] = {}
        self._propagator.inject(headers, set_span_in_context(span, Context()))
        return [(name, value.encode()) for name, value in headers.items()] or carried

    @contextmanager
    def span(self, name: str, **attributes: str | int | float) -> Iterator[None]:
        """Time what is done inside; what is raised there is noted in the span."""
        with self._tracer.start_as_current_span(
            name, attributes={f"srr.{key}": value for key, value in attributes.items()}
        ):
            yield

    def close(self) -> None:
        """Let what is still here go to the collector, for 2.5 s at most; twice is fine."""
        if self._is_closed:
            return
        self._is_closed = True
        # In a thread of its own, since it waits up to half a minute for a collector that does not answer.
        closing = threading.Thread(target=self._provider.shutdown, name="spans-closing", daemon=True)
        closing.start()
        closing.join(_SHUTDOWN_S)
        if closing.is_alive():
            log.warning("the last spans are lost: the collector did not take them within %g s", _SHUTDOWN_S)
            if self._exporter is not None:  # or it tries again for as long as the process lives
                self._exporter.shutdown()
                closing.join(_SHUTDOWN_S / 4)


def make_spans(role: str, *, group_id: str) -> Spans:
    """Return what makes spans and exports them by OTLP over HTTP, from a thread of its own.

    ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME``, ``OTEL_BSP_…`` and their like are
    heeded. A collector that is not there costs spans and nothing else: they are dropped when the queue is full.

    Raises
    ------
    LibraryMissing
        If the extra ``otel`` is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise LibraryMissing(
            "tracing.enabled: is true, which needs OpenTelemetry; pip install 'srr-stream[otel]' or set it to false"
        ) from error
    named = OTELResourceDetector().detect().attributes.get(SERVICE_NAME)
    about = {"service.version": package_version()} | ({} if named else {SERVICE_NAME: f"srr-stream-{role}"})
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    exporter = OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Spans(provider, group_id=group_id, exporter=exporter)


def trace_headers(raw: RawRecord) -> list[Header]:
    """Return the trace headers of a record as they are: none if its ``traceparent`` is none.

    Of several headers by one name the last counts, as in Kafka. A ``tracestate`` that is no text of printable ASCII, or
    longer than the 512 characters that everybody must hand on, is left out.

    Examples
    --------
    >>> from consumers.records import StoredRecord
    >>> parent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    >>> trace_headers(StoredRecord("t", 0, 0, 0, None, b"", [("traceparent", parent), ("tracestate", b"a=1")]))
    [('traceparent', b'00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'), ('tracestate', b'a=1')]
    >>> trace_headers(StoredRecord("t", 0, 0, 0, None, b"", [("traceparent", b"what?")]))
    []
    """
    if not raw.headers:
        return []
    found = {name: value for name, value in raw.headers if name in ("traceparent", "tracestate")}
    parent, state = found.get("traceparent"), found.get("tracestate")
    if parent is None or not _is_traceparent(parent):
        return []
    headers: list[Header] = [("traceparent", parent)]
    if state is not None and _TRACESTATE.fullmatch(state):
        headers.append(("tracestate", state))
    return headers


def _is_traceparent(value: bytes) -> bool:
    """Return whether it is one by W3C Trace Context, section 3.2.2; a later version may have more behind."""
    match = _TRACEPARENT.fullmatch(value)
    if match is None:
        return False
    version, trace, span, more = match.groups()
    is_known = version == b"00"
    return version != b"ff" and trace != b"0" * 32 and span != b"0" * 16 and not (is_known and more)
