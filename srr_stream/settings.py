"""What may be set and what it means, each setting by itself.

:mod:`srr_stream.loading` reads and checks a file of them, :mod:`srr_stream.assembly` turns them into parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, SecretStr
from pydantic import Field as Setting
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from consumers.images import MAX_PIXELS, MOST_PIXELS
from consumers.records import MAX_IMAGE_SIDE, FieldKind, ImageMode, ResizeRule

ENV_PREFIX = "SRR__"
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")


def parse_duration(value: object) -> object:
    """Read a duration as people write it: ``250ms``, ``45s``, ``15m``, ``1h30m``, ``2d``.

    Examples
    --------
    >>> parse_duration("1h30m")
    datetime.timedelta(seconds=5400)
    """
    if isinstance(value, timedelta):
        return value
    text = str(value).strip()
    parts = _DURATION.findall(text)
    if not parts or "".join(f"{number}{unit}" for number, unit in parts) != re.sub(r"\s+", "", text):
        raise ValueError("a duration with its unit, such as 250ms, 45s, 15m, 1h30m or 2d")
    try:
        return timedelta(seconds=sum(float(number) * _UNITS_S[unit] for number, unit in parts))
    except OverflowError as error:
        raise ValueError(f"a duration up to {timedelta.max.days}d") from error


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("a duration above 0")
    return value


def _web_address(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", value):
        raise ValueError("an address that begins with http:// or https://, such as https://srr.example.com")
    return value.rstrip("/")


def _token_address(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s#]*)?", value):
        raise ValueError(
            "an address that begins with https:// or http://, without a user and password in it, such as "
            "https://login.example.com/oauth2/token"
        )
    return value


Duration = Annotated[timedelta, BeforeValidator(parse_duration), AfterValidator(_positive)]
Share = Annotated[float, Setting(gt=0, lt=1)]
ClassifierName = Literal[
    "blend",
    "gde",
    "histogram",
    "knn",
    "kde",
    "ocsvm",
    "isolation_forest",
    "lof",
    "pca",
    "robust_pca",
    "centres",
    "energy",
]
RepresentationName = Literal[
    "identity",
    "goad",
    "pixels",
    "cutpaste",
    "contrastive",
    "rotation",
    "denoising_autoencoder",
    "robust_autoencoder",
    "frozen",
]
PICTURE_REPRESENTATIONS = get_args(RepresentationName)[2:]
"""Those that take pictures; the others take fields."""
InstanceId = Annotated[str, Setting(pattern=r"^[A-Za-z0-9._-]{1,200}$")]
_LEAST_MESSAGE = 256 * 1024
PublicUrl = Annotated[str, AfterValidator(_web_address)]
TokenUrl = Annotated[str, AfterValidator(_token_address)]
Port = Annotated[int, Setting(ge=0, le=65535)]
ImageSide = Annotated[int, Setting(ge=1, le=MAX_IMAGE_SIDE)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(_Section):
    """How to reach the brokers; the names are Kafka's own."""

    bootstrap_servers: str = Setting(description="host:port of some brokers, comma-separated")
    client: Literal["kafka-python", "confluent"] = Setting(
        "kafka-python",
        description="the library by which records are read and verdicts written; confluent is several times as fast, "
        "and the extra of this name",
    )
    client_id: str = Setting("srr-stream", description="what the brokers' logs and quotas call this client")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Setting(
        "PLAINTEXT", description="whether there is TLS (SSL), and a login (SASL); see docs/kafka.md"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Setting(
        None, description="of the login: by password, or by a token (OAUTHBEARER)"
    )
    sasl_plain_username: str | None = Setting(None, description="user, for PLAIN and SCRAM")
    sasl_plain_password: SecretStr | None = Setting(None, description="the user's password; better in a file")
    sasl_plain_password_file: Path | None = Setting(None, description="read the password from this file instead")
    sasl_oauthbearer_token_endpoint_url: TokenUrl | None = Setting(None, description="where OAUTHBEARER gets a token")
    sasl_oauthbearer_client_id: str | None = Setting(None, description="who asks for the token")
    sasl_oauthbearer_client_secret: SecretStr | None = Setting(None, description="its secret; better in a file")
    sasl_oauthbearer_client_secret_file: Path | None = Setting(None, description="read it from this file instead")
    sasl_oauthbearer_scope: str | None = Setting(None, description="of the token, if the endpoint wants one")
    ssl_cafile: Path | None = Setting(None, description="CAs in PEM; left out: those of this machine")
    ssl_certfile: Path | None = Setting(None, description="this client's own certificate in PEM")
    ssl_keyfile: Path | None = Setting(None, description="its key in PEM; left out: it is in ssl_certfile")
    ssl_password: SecretStr | None = Setting(None, description="what unlocks the key")
    ssl_password_file: Path | None = Setting(None, description="read it from this file instead")
    ssl_check_hostname: bool = Setting(True, description="false: a broker's certificate may be for another host")
    metadata_max_age: Duration = Setting(
        timedelta(minutes=5), description="how soon new partitions, and other changes of topics, are noticed"
    )
    connect_timeout: Duration = Setting(timedelta(seconds=10), description="how long one attempt to connect may take")


class InputSettings(_Section):
    """Which records are read, by whom and from where on."""

    topics: tuple[str, ...] = Setting(min_length=1, description="read together, as one stream of one schema")
    group_id: str = Setting("srr-stream", description="scorers of one group share the partitions")
    start: Literal["earliest", "latest"] = Setting(description="where a group without committed offsets begins")
    max_batch: int | None = Setting(
        None, ge=1, description="at most this many records are scored together; left out: 20000, of pictures 128"
    )
    max_delay: Duration = Setting(
        timedelta(milliseconds=250),
        description="a batch holds no more records than are judged in so long; one alone waits for no other",
    )
    lost_offset: Literal["error", "earliest", "latest"] = Setting(
        "earliest", description="where to go on when the log no longer holds the offset to read next; it is counted"
    )
    isolation_level: Literal["read_committed", "read_uncommitted"] = Setting(
        "read_committed", description="read_committed leaves out what senders' transactions took back"
    )
    instance_id: InstanceId | None = Setting(
        None,
        description="name of this scorer among all of the group: static membership, and transactions to come back to",
    )
    poll_timeout: Duration = Setting(timedelta(milliseconds=200), description="how long one poll waits for a record")
    session_timeout: Duration = Setting(
        timedelta(seconds=45), description="a scorer silent for so long loses its partitions"
    )
    max_poll_interval: Duration = Setting(
        timedelta(minutes=5), description="a scorer whose batch takes longer loses its partitions"
    )
    stall_timeout: Duration = Setting(
        timedelta(minutes=1),
        description="a partition that gives nothing for so long though records wait is reconnected",
    )
    max_record_size: ByteSize = Setting(ByteSize(1 << 20), description="a larger record is a dead letter")


class FieldSettings(_Section):
    """One declared field of a record."""

    name: str = Setting(min_length=1, description="what reasons and verdicts call it")
    kind: FieldKind = Setting(FieldKind.NUMERIC, description="what its values are")
    path: str | None = Setting(None, description="dotted path to the value; the name itself if left out")
    required: bool = Setting(True, description="false: null or absent is a missing value; true: it is a bad record")
    size: tuple[ImageSide, ImageSide] | None = Setting(None, description="of an image: [width, height] in pixels")
    mode: ImageMode = Setting("rgb", description="of an image: what it is turned into")
    resize: ResizeRule = Setting("stretch", description="of an image: what becomes of another size")


class SchemaSettings(_Section):
    """How a record is written, and the fields that it must have."""

    format: Literal["json", "image"] = Setting("json", description="image: a record is the file of a picture")
    max_pixels: int = Setting(
        MAX_PIXELS, ge=1, le=MOST_PIXELS, description="a picture with more is a dead letter; Pillow's own limit at most"
    )
    fields: tuple[FieldSettings, ...] = Setting(min_length=1, description="what a record is made of; see below")
    time_field: str | None = Setting(None, description="the timestamp field that is the record's own time")


class OutputSettings(_Section):
    """Where verdicts go. At least one of the two topics must be set."""

    alerts_topic: str | None = Setting(None, description="flagged records, as CloudEvents")
    scores_topic: str | None = Setting(None, description="every verdict")
    dead_letter_topic: str = Setting(description="records that could not be read, untouched, with the reason")
    include_record: bool = Setting(False, description="put the record itself into its verdict")
    n_reasons: int = Setting(5, ge=0, description="how many fields a flagged record's reason names")
    flush_timeout: Duration = Setting(
        timedelta(seconds=30), description="brokers silent for so long are taken for lost; nothing is committed"
    )
    max_message_size: ByteSize = Setting(
        ByteSize(1 << 20), ge=_LEAST_MESSAGE, description="what the topics take: their max.message.bytes"
    )


class DeliverySettings(_Section):
    """What is promised of every record; see docs/guarantees.md."""

    mode: Literal["at_least_once", "exactly_once"] = Setting(
        "at_least_once", description="exactly_once: verdicts and offsets in one Kafka transaction"
    )


class WindowSettings(_Section):
    """Which records a model is trained on."""

    mode: Literal["latest", "span", "sample"] = Setting(
        "latest", description="the newest max_size; all of the last span; or max_size spread over it"
    )
    min_size: int = Setting(2000, ge=50, description="no training before this many records are in the log")
    max_size: int = Setting(20000, ge=50, description="at most this many records make a window")
    span: Duration | None = Setting(None, description="with mode span or sample: how far back the window reaches")


class TrainingSettings(_Section):
    """When a training is due and what it does."""

    every: Duration | None = Setting(timedelta(minutes=15), description="train after this time")
    every_records: int | None = Setting(None, ge=1, description="train after this many new records")
    on_drift: bool = Setting(True, description="train when the flagged rate or the mean severity drifts (ADWIN)")
    min_interval: Duration = Setting(timedelta(minutes=1), description="rest between trainings that drift asked for")
    representation: RepresentationName = Setting(
        "goad", description="identity, goad: of fields; the others: of pictures"
    )
    representation_options: Mapping[str, Any] = Setting(
        default_factory=dict, description="keyword arguments of the representation"
    )
    classifier: ClassifierName | None = Setting(None, description="on the representation; left out: what suits it")
    classifier_options: Mapping[str, Any] = Setting(
        default_factory=dict, description="keyword arguments of the classifier"
    )
    n_subsets: int = Setting(5, ge=2, description="K of the ensemble that refines the window")
    gamma: Share | None = Setting(None, description="share that each member rejects; estimated if left out")
    gamma_estimate: Literal["auto", "excess", "otsu"] = Setting("auto", description="how; otsu is the paper's")
    contamination: Share | None = Setting(None, description="known share of anomalies; gamma is then twice this")
    device: str = Setting("auto", description="auto, cpu, cuda, cuda:1, …")
    seed: int = Setting(0, description="of everything random in a training, together with its version")
    n_threads: int = Setting(1, ge=1, description="processor threads of a training beside the scorer")
    nice: int = Setting(10, ge=0, le=19, description="the trainer's niceness, so that scoring goes first")
    memory_limit: ByteSize | None = Setting(None, description="memory that the trainer process may allocate")
    hang_timeout: Duration = Setting(timedelta(minutes=10), description="a trainer silent for so long is restarted")
    check_every: Duration = Setting(timedelta(seconds=1), description="how often the trainer looks if one is due")


class ThresholdSettings(_Section):
    """The only number that a person need state, and it has a default."""

    false_alarm_rate: Share = Setting(0.005, description="α: share of normal records that may be flagged")


class ScoringSettings(_Section):
    """Where models of pictures score; fields are scored on the processor, by one thread."""

    device: str = Setting("auto", description="auto, cpu, cuda, cuda:1, …")
    n_threads: int | None = Setting(None, ge=1, description="threads of the processor; left out: one for each core")


class GateSettings(_Section):
    """What a new model must show before it replaces the champion."""

    mode: Literal["automatic", "manual", "off"] = Setting(
        "automatic", description="manual: a person promotes what passes; off: everything is promoted"
    )
    max_excluded_ratio: Share = Setting(0.5, description="refinement may drop at most this share of a window")
    max_flagged_ratio: Share = Setting(0.3, description="the newest part of the window may be flagged at most so much")
    max_flagged_factor: float = Setting(10.0, gt=1, description="and at most this many times what the champion flags")
    min_synthetic_auc_margin: float = Setting(
        -0.1, ge=-1, le=0, description="detection of synthetic anomalies may be worse by this much"
    )
    max_forgotten_ratio: Share | None = Setting(
        0.02, description="share of the newest records that the reference flags and the new model does not; null: any"
    )
    reference_version: int | None = Setting(
        None, ge=1, description="what slow poisoning is looked for against; left out: it is pinned by itself"
    )
    auto_rollback: bool = Setting(True, description="go back if a new model flags too much of the live stream")
    probation: int = Setting(10_000, ge=5000, description="for so many records after a swap")


class RegistrySettings(_Section):
    """Where models are kept: a local folder or an object store."""

    url: str = Setting("var/registry", description="a folder, s3://bucket/path or gs://bucket/path")
    keep: int = Setting(10, ge=2, description="versions kept besides the ones in use")
    poll_every: Duration = Setting(timedelta(seconds=1), description="how often the scorer looks for a new version")


class HttpSettings(_Section):
    """Metrics and health, one endpoint a role, heat maps on the scorer's; port 0 takes a free one."""

    host: str = Setting("0.0.0.0", description="address to listen at; who reaches it can read, and nothing else")
    scorer_port: Port = Setting(9108, description="of the scorer's endpoint")
    trainer_port: Port = Setting(9109, description="of the trainer's endpoint")
    live_timeout: Duration = Setting(timedelta(seconds=60), description="/livez fails when the loop is silent so long")
    public_url: PublicUrl | None = Setting(
        None, description="where others reach the scorer's endpoint: the beginning of every alert's heat_map"
    )


class ApiSettings(_Section):
    """The API and the review page, in a process of their own."""

    enabled: bool = Setting(True, description="false: `run` starts none; `api` still does")
    host: str = Setting("127.0.0.1", description="reading is open on a loopback address; elsewhere it needs the token")
    port: Port = Setting(9110, description="0 takes a free one")
    token: SecretStr | None = Setting(None, description="what changing needs; left out: one is made, see state_dir")
    token_file: Path | None = Setting(None, description="read it from this file instead")
    state_dir: Path = Setting(Path("var/srr-stream"), description="the index of flagged records, and a token if made")
    keep_flagged: int = Setting(100_000, ge=100, description="flagged records that the index holds, the newest")
    scorer_urls: tuple[PublicUrl, ...] = Setting(
        (), description="endpoints of all scorers, asked for their state; left out: the one of this machine"
    )
    trainer_url: PublicUrl | None = Setting(None, description="endpoint of the trainer; left out: this machine's")
    public_url: PublicUrl | None = Setting(None, description="where people reach the page: alerts link to it")


class LabelSettings(_Section):
    """What people say of flagged records."""

    topic: str | None = Setting(None, description="compacted topic that keeps labels; left out: there are none")


class LogSettings(_Section):
    """How the processes log, to standard error."""

    format: Literal["auto", "console", "json"] = Setting(
        "auto", description="auto: for people on a terminal, JSON elsewhere"
    )
    repeat_limit: int = Setting(5, ge=1, description="the same message so often a window, then it is only counted")
    repeat_window: Duration = Setting(timedelta(minutes=1), description="over which repeat_limit counts")


class TracingSettings(_Section):
    """OpenTelemetry; where spans go is said by its own OTEL_* variables."""

    enabled: bool = Setting(False, description="a span a flagged record, below the traceparent of its headers")


class Settings(BaseSettings):
    """Everything, as read from one YAML file with ``SRR__SECTION__KEY`` of the environment over it."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__", populate_by_name=True
    )

    kafka: KafkaSettings
    input: InputSettings
    record: SchemaSettings
    output: OutputSettings
    delivery: DeliverySettings = DeliverySettings()
    window: WindowSettings = WindowSettings()
    training: TrainingSettings = TrainingSettings()
    threshold: ThresholdSettings = ThresholdSettings()
    scoring: ScoringSettings = ScoringSettings()
    gate: GateSettings = GateSettings()
    registry: RegistrySettings = RegistrySettings()
    http: HttpSettings = HttpSettings()
    api: ApiSettings = ApiSettings()
    labels: LabelSettings = LabelSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the environment over the file (which arrives as keyword arguments)."""
        return env_settings, init_settings


class FileSettings(Settings):
    """The same, from the file alone."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the file alone."""
        return (init_settings,)
