"""Settings into parts: the one module that knows both.

The parts themselves take plain arguments, so that each can be used, and tested, without a settings file.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from consumers.clients import ClientName
from consumers.decoding import DECODERS, Decoder
from consumers.delivery import AtLeastOnce, Delivery, ExactlyOnce
from consumers.records import Field, FieldKind, ImageSpec, RecordSchema
from consumers.trust import Secret
from srr_stream.pace import Pace
from srr_stream.registry import Registry
from srr_stream.triggers import ClockTrigger, CountTrigger, DriftTrigger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pydantic import SecretStr

    from consumers.logs import Log
    from consumers.records import Position, RawRecord
    from consumers.sinks.kafka import KafkaSink
    from consumers.sources.kafka import KafkaSource
    from consumers.windows import WindowReader
    from models.training import TrainingConfig
    from srr_stream.gate import GateBounds
    from srr_stream.heat_maps import HeatMaps
    from srr_stream.labels import LabelBook
    from srr_stream.labels.known_normals import KnownNormals
    from srr_stream.labels.watch import LabelWatch
    from srr_stream.live_model import Live, LiveModel
    from srr_stream.metrics import ScorerMetrics
    from srr_stream.record_reader import RecordReader
    from srr_stream.settings import FieldSettings, KafkaSettings, SchemaSettings, Settings
    from srr_stream.swap_watch import SwapWatch
    from srr_stream.tracing import Tracing
    from srr_stream.web.details import Details

_MAX_BATCH = 20_000
_LOOK_UP_TIMEOUT_S = 10.0
_MAX_BATCH_OF_IMAGES = 128
"""More at once are no faster, and a quarter of a window's memory."""


def record_schema(settings: SchemaSettings) -> RecordSchema:
    """Return the schema that ``record`` declares.

    Raises
    ------
    ValueError
        If the fields contradict each other; the text begins with the key below ``record``.
    """
    try:
        return RecordSchema(tuple(map(_field, settings.fields)), settings.time_field)
    except ValueError as error:
        text = str(error).removeprefix("schema: ")
        key = "time_field" if text.startswith("time_field") else "fields"
        raise ValueError(f"{key}: {text.removeprefix('time_field ')}") from error


def _field(settings: FieldSettings) -> Field:
    image = None
    if settings.kind is FieldKind.IMAGE and settings.size is not None:
        image = ImageSpec(*settings.size, settings.mode, settings.resize)
    path = tuple(settings.path.split(".")) if settings.path else ()
    return Field(settings.name, settings.kind, path, settings.required, image)


def kafka_connection(settings: KafkaSettings) -> dict[str, Any]:
    """Return what every Kafka client of this application is given, in kafka-python's words."""
    connection: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",")],
        "client_id": settings.client_id,
        "security_protocol": settings.security_protocol,
        "bootstrap_timeout_ms": int(settings.connect_timeout.total_seconds() * 1000),
        "metadata_max_age_ms": int(settings.metadata_max_age.total_seconds() * 1000),
    }
    if settings.security_protocol.startswith("SASL"):
        connection["sasl_mechanism"] = settings.sasl_mechanism
        if settings.sasl_mechanism == "OAUTHBEARER":
            connection["sasl_oauth_token_provider"] = _token_provider(settings)
        else:
            connection |= {
                "sasl_plain_username": settings.sasl_plain_username,
                "sasl_plain_password": _secret(settings.sasl_plain_password, settings.sasl_plain_password_file),
            }
    if settings.security_protocol.endswith("SSL"):
        files = {"ssl_cafile": settings.ssl_cafile, "ssl_certfile": settings.ssl_certfile}
        files["ssl_keyfile"] = settings.ssl_keyfile
        connection |= {name: str(path) for name, path in files.items() if path is not None}
        connection["ssl_password"] = _secret(settings.ssl_password, settings.ssl_password_file)
        connection["ssl_check_hostname"] = settings.ssl_check_hostname
    return connection


def _token_provider(settings: KafkaSettings) -> Any:
    from consumers.oauth import ClientCredentials, token_provider

    secret = _secret(settings.sasl_oauthbearer_client_secret, settings.sasl_oauthbearer_client_secret_file)
    return token_provider(
        ClientCredentials(
            settings.sasl_oauthbearer_token_endpoint_url or "",
            client_id=settings.sasl_oauthbearer_client_id or "",
            client_secret=secret or "",
            scope=settings.sasl_oauthbearer_scope,
            cafile=str(settings.ssl_cafile) if settings.ssl_cafile is not None else None,
        )
    )


def _secret(given: SecretStr | None, file: Path | None) -> Secret | None:
    """Return a secret, from its file if there is one, as a text that is never shown."""
    if file is not None:
        return Secret(file.read_text(encoding="utf-8").strip())
    return Secret(given.get_secret_value()) if given else None


def make_decoder(settings: Settings) -> Decoder:
    """Return the decoder of the declared records; raises `LibraryMissing` if it needs Pillow and there is none."""
    return DECODERS[settings.record.format](
        record_schema(settings.record),
        max_record_size=int(settings.input.max_record_size),
        max_pixels=settings.record.max_pixels,
    )


def make_source(
    settings: Settings,
    *,
    on_rebalance: Callable[[], None] | None = None,
    on_skipped: Callable[[Position, int], None] | None = None,
) -> KafkaSource:
    """Connect to the input topics as a member of the group; raises what :class:`KafkaSource` raises."""
    from consumers.sources.kafka import KafkaSource

    source = settings.input
    return KafkaSource(
        source.topics,
        group_id=source.group_id,
        connection=kafka_connection(settings.kafka),
        start=source.start,
        lost_offset=source.lost_offset,
        isolation_level=source.isolation_level,
        instance_id=source.instance_id,
        max_batch=_max_batch(settings),
        session_timeout_s=source.session_timeout.total_seconds(),
        max_poll_interval_s=source.max_poll_interval.total_seconds(),
        stall_timeout_s=source.stall_timeout.total_seconds(),
        on_rebalance=on_rebalance,
        on_skipped=on_skipped,
        client=ClientName(settings.kafka.client),
    )


def make_pace(settings: Settings) -> Pace:
    """Return what says how large a batch is."""
    return Pace(_max_batch(settings), settings.input.max_delay.total_seconds())


def _max_batch(settings: Settings) -> int:
    has_images = record_schema(settings.record).image_field is not None
    return settings.input.max_batch or (_MAX_BATCH_OF_IMAGES if has_images else _MAX_BATCH)


def transactional_id(settings: Settings) -> str | None:
    """Return the name of this process's transactions, None if it needs none.

    With an instance id it is the same after a restart, which then takes back at once what a crash left open; without
    one the broker does so after ``output.flush_timeout``.
    """
    if settings.delivery.mode == "at_least_once":
        return None
    return f"{settings.input.group_id}-{settings.input.instance_id or uuid.uuid4().hex}"


def make_delivery(settings: Settings, source: KafkaSource, sink: KafkaSink) -> Delivery:
    """Return the promise that the settings ask for; the sink must have been made for it."""
    return (ExactlyOnce if settings.delivery.mode == "exactly_once" else AtLeastOnce)(source, sink)


def make_sink(settings: Settings, *, transactional_id: str | None = None) -> KafkaSink:
    """Connect to the output topics; raises what :class:`KafkaSink` raises."""
    from consumers.sinks.kafka import KafkaSink

    output = settings.output
    return KafkaSink(
        kafka_connection(settings.kafka),
        scores_topic=output.scores_topic,
        alerts_topic=output.alerts_topic,
        dead_letter_topic=output.dead_letter_topic,
        include_record=output.include_record,
        review_url=settings.api.public_url,
        max_message_size=int(output.max_message_size),
        flush_timeout_s=output.flush_timeout.total_seconds(),
        transactional_id=transactional_id,
        client=ClientName(settings.kafka.client),
    )


def make_registry(settings: Settings) -> Registry:
    """Open the model registry; nothing is read or written yet."""
    reference = settings.gate.reference_version
    pinned = () if reference is None else (reference,)
    return Registry(settings.registry.url, keep=settings.registry.keep, pinned=pinned)


def make_live_model(
    settings: Settings,
    registry: Registry,
    *,
    on_swap: Callable[[Live], None] | None = None,
    on_refusal: Callable[[int, str], None] | None = None,
    on_rollback: Callable[[int, str], None] | None = None,
) -> LiveModel:
    """Return the live model of a registry; nothing is loaded yet."""
    from srr_stream.live_model import LiveModel

    return LiveModel(
        registry,
        schema_digest=record_schema(settings.record).digest,
        false_alarm_rate=settings.threshold.false_alarm_rate,
        poll_every_s=settings.registry.poll_every.total_seconds(),
        device=settings.scoring.device,
        n_threads=settings.scoring.n_threads or os.cpu_count(),
        keeps_previous=settings.gate.auto_rollback,
        on_swap=on_swap,
        on_refusal=on_refusal,
        on_rollback=on_rollback,
    )


def make_swap_watch(settings: Settings, live_model: LiveModel, metrics: ScorerMetrics) -> SwapWatch | None:
    """Return the watch over freshly swapped models, None if the settings leave it out."""
    from srr_stream.swap_watch import SwapWatch

    gate = settings.gate
    if not gate.auto_rollback:
        return None
    return SwapWatch(
        live_model,
        metrics=metrics,
        max_flagged_ratio=gate.max_flagged_ratio,
        max_flagged_factor=gate.max_flagged_factor,
        probation=gate.probation,
    )


def make_heat_maps(settings: Settings, registry: Registry, live_model: LiveModel) -> HeatMaps:
    """Return what draws heat maps, with a consumer of its own that belongs to no group, and a decoder of its own."""
    from srr_stream.heat_maps import HeatMaps
    from srr_stream.model_shelf import ModelShelf

    return HeatMaps(make_record_reader(settings), make_decoder(settings), ModelShelf(live_model, registry))


def make_record_reader(settings: Settings) -> RecordReader:
    """Return what reads single records of the input topics, with a consumer of its own that belongs to no group."""
    from consumers.logs import KafkaLog
    from srr_stream.record_reader import RecordReader

    topics, connection = settings.input.topics, kafka_connection(settings.kafka)
    return RecordReader(lambda: KafkaLog(topics, connection=connection, timeout_s=_LOOK_UP_TIMEOUT_S), topics=topics)


def make_details(
    settings: Settings, registry: Registry, live_model: LiveModel, book: LabelBook | None = None
) -> Details:
    """Return what reads, judges and explains single records for the API, with decoders of its own."""
    from srr_stream.heat_maps import HeatMaps
    from srr_stream.labels.known_normals import KnownNormals
    from srr_stream.model_shelf import ModelShelf
    from srr_stream.web.details import Details

    shelf = ModelShelf(live_model, registry)
    heat_maps = HeatMaps(make_record_reader(settings), make_decoder(settings), shelf)
    return Details(
        make_record_reader(settings),
        make_decoder(settings),
        shelf,
        registry,
        heat_maps,
        n_reasons=settings.output.n_reasons,
        known_normals=KnownNormals(book, make_decoder(settings)) if book is not None else None,
    )


def api_token(settings: Settings) -> tuple[str, bool]:
    """Return the API's token, and whether it is one that was made here because the settings name none.

    Raises
    ------
    OSError
        If its file cannot be read, or ``api.state_dir`` not be written.
    """
    from srr_stream.web.access import own_token

    given = _secret(settings.api.token, settings.api.token_file)
    if given is not None:
        return given.encode().decode(), False  # as it is: it says *** of itself
    return own_token(settings.api.state_dir), True


def heat_map_url(settings: Settings) -> Callable[[RawRecord, int], str]:
    """Return what says where the heat map of a record by a version is to be had."""
    from srr_stream.heat_maps import path_of

    before = settings.http.public_url or ""
    return lambda raw, version: before + path_of(raw, version)


def make_window_reader(
    settings: Settings, *, log: Log | None = None, clock: Callable[[], float] = time.time
) -> WindowReader:
    """Return the reader of training windows, of another log if one is given.

    Else with a consumer of its own that belongs to no group; `clock` tells seconds since the epoch.
    """
    from consumers.logs import KafkaLog
    from consumers.windows import WindowReader

    window = settings.window
    return WindowReader(
        log if log is not None else KafkaLog(settings.input.topics, connection=kafka_connection(settings.kafka)),
        make_decoder(settings),
        mode=window.mode,
        max_size=window.max_size,
        span_s=window.span.total_seconds() if window.span is not None else None,
        seed=settings.training.seed,
        clock=clock,
    )


def make_label_watch(settings: Settings, live_model: LiveModel, metrics: ScorerMetrics) -> LabelWatch | None:
    """Return what follows the labels, not started; None if the settings name no topic of labels."""
    if settings.labels.topic is None:
        return None
    from srr_stream.labels.watch import LabelWatch

    return LabelWatch(
        settings.labels.topic,
        connection=kafka_connection(settings.kafka),
        metrics=metrics,
        false_alarm_rate=lambda: live_model.false_alarm_rate,
    )


def make_known_normals(settings: Settings, labels: LabelWatch | None) -> KnownNormals | None:
    """Return what keeps false alarms that people marked from being flagged again; None without labels."""
    if labels is None:
        return None
    from srr_stream.labels.known_normals import KnownNormals

    return KnownNormals(labels.book, make_decoder(settings))


def labels_reader(settings: Settings) -> Callable[[], LabelBook] | None:
    """Return what reads all labels there are; None if the settings name no topic of labels."""
    topic = settings.labels.topic
    if topic is None:
        return None
    from srr_stream.labels import read_labels

    return lambda: read_labels(kafka_connection(settings.kafka), topic, timeout_s=_LOOK_UP_TIMEOUT_S)


def make_training_config(settings: Settings) -> TrainingConfig:
    """Return how a model is trained.

    Raises
    ------
    ValueError
        If the options do not fit the representation or the classifier.
    """
    from models.presets import PRESETS

    training = settings.training
    name = training.representation
    preset = PRESETS[{"identity": "default", "frozen": "pixels"}.get(name, name)]
    same = preset.representation_options if preset.representation == name else {}
    options: dict[str, Any] = {
        "representation": name,
        "representation_options": {**same, **training.representation_options},
    }
    if training.classifier is not None:
        options |= {"classifier": training.classifier, "classifier_options": dict(training.classifier_options)}
        options["ensemble_options"] = {}
    return replace(
        preset,
        **options,
        n_subsets=training.n_subsets,
        gamma=training.gamma_estimate if training.gamma is None else training.gamma,
        contamination=training.contamination,
        false_alarm_rate=settings.threshold.false_alarm_rate,
    )


def make_tracing(settings: Settings, role: str) -> Tracing:
    """Return what makes spans, or only hands traces on; raises `LibraryMissing` if the extra is not installed."""
    from srr_stream.tracing import NoSpans, make_spans

    return make_spans(role, group_id=settings.input.group_id) if settings.tracing.enabled else NoSpans()


def log_as_set(settings: Settings, *, role: str | None = None) -> None:
    """Log as the settings say, from now on, if this process logs by :mod:`srr_stream.logs`."""
    from srr_stream.logs import change_logging

    log = settings.log
    change_logging(
        role=role,
        format=log.format,
        repeat_limit=log.repeat_limit,
        repeat_window_s=log.repeat_window.total_seconds(),
    )


def make_gate_bounds(settings: Settings) -> GateBounds:
    """Return what the gate allows."""
    from srr_stream.gate import GateBounds

    gate = settings.gate
    return GateBounds(
        max_excluded_ratio=gate.max_excluded_ratio,
        max_flagged_ratio=gate.max_flagged_ratio,
        max_flagged_factor=gate.max_flagged_factor,
        min_synthetic_auc_margin=gate.min_synthetic_auc_margin,
        max_forgotten_ratio=gate.max_forgotten_ratio,
    )


def make_triggers(settings: Settings, *, clock: Callable[[], float]) -> tuple[ClockTrigger | None, CountTrigger | None]:
    """Return the trainer's own triggers, None where the settings leave one out."""
    training = settings.training
    every = ClockTrigger(training.every.total_seconds(), clock=clock) if training.every is not None else None
    count = CountTrigger(training.every_records) if training.every_records is not None else None
    return every, count


def make_drift_trigger(settings: Settings) -> DriftTrigger | None:
    """Return the scorer's watch over its own verdicts, None if the settings leave it out."""
    return DriftTrigger() if settings.training.on_drift else None
