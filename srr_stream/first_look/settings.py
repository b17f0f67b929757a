"""A settings file for records that nobody has described: every line says what was seen and can be changed.

What the fields are is :mod:`srr_stream.first_look.inference`'s; what may be set :mod:`srr_stream.settings`'s.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import SecretStr

from srr_stream.first_look.inference import FoundField, Inferred
from srr_stream.loading import check_settings
from srr_stream.settings import KafkaSettings, Settings, WindowSettings

if TYPE_CHECKING:
    from srr_stream.first_look.sampling import Sample

_COMMENT_AT = 60
"""Column where a comment begins, if its line is not longer."""
_LEAST_WINDOW, _MOST_MIN_SIZE = 50, 2000
_MAX_PICTURES, _MAX_PICTURE_BYTES = 10_000, 1 << 30
"""Of a window of pictures, whose training takes some times the memory."""
_MAX_RECORD = 1 << 20
_N_PICTURES_CHECKED = 200
_SECRETS = tuple(key for key in KafkaSettings.model_fields if f"{key}_file" in KafkaSettings.model_fields)


@dataclass(frozen=True)
class Check:
    """Whether the settings can read what they were made from."""

    n_checked: int
    n_decoded: int
    reasons: Mapping[str, int]
    """Reason → how many were bad for it."""
    example: str | None
    """What is wrong with one of them."""

    @property
    def ratio(self) -> float:
        """Share of the records that can be read."""
        return self.n_decoded / max(1, self.n_checked)


def topic_of(name: str) -> str:
    """Return a name that Kafka takes for a topic.

    Examples
    --------
    >>> topic_of("Zähler 2024.csv"), topic_of("...")
    ('Z-hler-2024', 'records')
    """
    stem = re.sub(r"\.(csv|ndjson|jsonl|parquet|npz)$", "", name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-")[:200] or "records"


def first_settings(
    sample: Sample, inferred: Inferred, *, topic: str, kafka: KafkaSettings, is_file: bool, has_placeholder: bool
) -> str:
    """Return the YAML text.

    Parameters
    ----------
    kafka
        How to reach the brokers. Its secrets are not written, only where they may stand.
    is_file
        The sample is a whole file, and the window is made to fit it.
    has_placeholder
        The brokers are not known; the address is an example.
    """
    parts: list[str] = [
        f"# Made by srr-stream init from {_plain(sample.name)}: the newest {len(sample.records):,} of "
        f"{sample.n_total:,} records were looked at.",
        "# Comments say what was seen there. Change what you like; configs/reference.yaml has every setting there is.",
        "kafka:",
        *_kafka_lines(kafka, has_placeholder=has_placeholder),
        "",
        "input:",
        f"  topics: [{_scalar(topic)}]",
        _line(f"  group_id: {_value(f'srr-stream-{topic}')}", "scorers of one group share the partitions"),
        _line("  start: earliest", "where a new group begins: earliest, latest"),
        *_size_lines(sample.records),
        "",
        "record:",
        *(
            ["  format: image                # a record is the file of a JPEG, PNG or WebP"]
            * (inferred.format == "image")
        ),
        *_field_lines(inferred),
        "",
        "output:",
        _line(f"  alerts_topic: {_value(f'{topic}.alerts')}", "flagged records, as CloudEvents, with the reason"),
        _line(f"  scores_topic: {_value(f'{topic}.scores')}", "every verdict; null: nowhere"),
        _line(f"  dead_letter_topic: {_value(f'{topic}.dead-letters')}", "records that could not be read, untouched"),
        "",
        "labels:",
        _line(f"  topic: {_value(f'{topic}.labels')}", "what people say of flagged records; a compacted topic"),
        "",
        *_window_lines(sample, inferred, is_file=is_file),
        "",
        "registry:",
        _line(f"  url: {_value(f'var/{topic}/registry')}", "a folder, s3://bucket/path, gs://bucket/path"),
        "",
        "api:",
        _line(f"  state_dir: {_value(f'var/{topic}/state')}", "the page's index of flagged records, and its token"),
    ]
    return "\n".join(parts) + "\n"


def read_back(text: str, kafka: KafkaSettings) -> Settings:
    """Return the settings that the text makes, given the secrets that it leaves out.

    Raises
    ------
    SettingsError
        If they are not good, which would be a defect, or come from the environment.
    """
    content = yaml.safe_load(text)
    for key in _SECRETS:
        secret = getattr(kafka, key)
        if isinstance(secret, SecretStr):
            content["kafka"][key] = secret
    return check_settings(content)


def check_decoding(settings: Settings, sample: Sample) -> Check:
    """Decode the sample as the settings say; of pictures 200."""
    from srr_stream.assembly import make_decoder

    records = sample.records[-_N_PICTURES_CHECKED:] if settings.record.format == "image" else sample.records
    decoded = make_decoder(settings).decode(records)
    reasons = Counter(bad.reason for bad in decoded.bad)
    return Check(len(records), len(decoded.batch), reasons, decoded.bad[0].detail if decoded.bad else None)


def missing_secrets(kafka: KafkaSettings) -> list[str]:
    """Return the environment variables that hold what was not written."""
    return [f"SRR__KAFKA__{key.upper()}" for key in _SECRETS if getattr(kafka, key) is not None]


# Lines


def _kafka_lines(kafka: KafkaSettings, *, has_placeholder: bool) -> Iterator[str]:
    for key, info in KafkaSettings.model_fields.items():
        value = getattr(kafka, key)
        if value == info.default:
            continue
        if isinstance(value, SecretStr):
            yield f"  # {key} is not written here: put it into a file and name that,"
            yield f"  # {key}_file: /run/secrets/kafka"
            yield f"  # or into the environment, SRR__KAFKA__{key.upper()}."
        elif key == "bootstrap_servers":
            what = "change this: host:port of some of your brokers" if has_placeholder else "host:port, …"
            yield _line(f"  bootstrap_servers: {_value(value)}", what)
        else:
            shown = f"{value.total_seconds():g}s" if hasattr(value, "total_seconds") else value
            yield f"  {key}: {_value(shown if isinstance(shown, bool | int | str) else str(shown))}"
    if kafka.security_protocol == "PLAINTEXT":
        yield "  # TLS and logins: docs/kafka.md. A password belongs into sasl_plain_password_file or the environment."


def _size_lines(records: Sequence[Any]) -> Iterator[str]:
    largest = max((len(record.value or b"") for record in records), default=0)
    if 2 * largest > _MAX_RECORD:
        mib = -(-2 * largest >> 20)
        yield _line(
            f"  max_record_size: {mib}MiB", f"a larger one is a dead letter; the largest seen has {largest:,} bytes"
        )


def _field_lines(inferred: Inferred) -> Iterator[str]:
    if inferred.format == "image":
        yield _line("  format: image", "a record is the file of a JPEG, PNG or WebP")
    yield "  fields:"
    for found in inferred.fields:
        yield _line(f"    - {_mapping(found)}", "; ".join(filter(None, (_plain(found.seen), _plain(found.note)))))
    if inferred.left_out or inferred.n_more_left_out:
        yield "    # Left out; to put one back, take the # before it away."
    for found in inferred.left_out:
        why = f"{_plain(found.why_not or '')}; {_plain(found.seen)}"
        if found.kind is None:
            yield f"    #   {_plain(found.name)}: {why}"
        else:
            yield _line(f"    # - {_mapping(found)}", why)
    if inferred.n_more_left_out:
        yield f"    #   and {inferred.n_more_left_out:,} more, in few records each"
    if inferred.time_field is not None:
        yield _line(f"  time_field: {_value(inferred.time_field)}", "the record's own time; null: the log's")


def _mapping(found: FoundField) -> str:
    parts = [f"name: {_scalar(found.name)}", f"kind: {(found.kind or 'numeric')}"]
    if len(found.path) > 1:
        parts.append(f"path: {_scalar('.'.join(found.path))}")
    if not found.is_required:
        parts.append("required: false")
    if found.image is not None:
        parts += [f"size: [{found.image.width}, {found.image.height}]", f"mode: {found.image.mode}", "resize: stretch"]
    return "{" + ", ".join(parts) + "}"


def _window_lines(sample: Sample, inferred: Inferred, *, is_file: bool) -> Iterator[str]:
    min_size, max_size = _MOST_MIN_SIZE, WindowSettings.model_fields["max_size"].default
    why = "no training before this many records"
    if is_file and sample.n_total < 4 * _MOST_MIN_SIZE:
        min_size = max(_LEAST_WINDOW, _rounded(sample.n_total // 4))
        why += f"; a quarter of the file's {sample.n_total:,}"
    elif sample.n_total < min_size:
        why += f"; the topic holds {sample.n_total:,} by now"
    image = next((found.image for found in inferred.fields if found.image is not None), None)
    yield "window:"
    yield _line(f"  min_size: {min_size}", why)
    if image is not None:
        max_size = max(min_size, min(_MAX_PICTURES, _MAX_PICTURE_BYTES // image.n_bytes))
    yield _line(f"  max_size: {max_size}", "at most this many records make a window")
    if image is not None:
        yield ""
        yield "training:"
        yield _line("  representation: cutpaste", "pixels, cutpaste, contrastive, rotation, …; docs/images.md")


def _rounded(n: int) -> int:
    """Return a number with its first two digits alone.

    Examples
    --------
    >>> _rounded(943), _rounded(52)
    (940, 52)
    """
    unit = int(10 ** max(0, len(str(n)) - 2))
    return n // unit * unit


def _value(value: bool | int | str) -> str:
    """Return a value as YAML has it on a line of its own."""
    return str(yaml.safe_dump(value, allow_unicode=True, width=1 << 30)).removesuffix("...\n").strip()


def _line(text: str, comment: str) -> str:
    return f"{text.ljust(_COMMENT_AT)}  # {comment}" if comment else text


def _scalar(value: bool | int | str) -> str:
    """Return a value as YAML has it between brackets or braces."""
    return str(yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=1 << 30)).strip()[1:-1]


def _plain(text: str) -> str:
    """Return a text as one that a comment can hold: it must not end the line."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
