"""Settings out of a YAML file, the environment over it: every problem at once, with its path and what is allowed."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings.exceptions import SettingsError as VariableError

from consumers.records import FieldKind, ImageSpec
from srr_stream.assembly import make_training_config, record_schema
from srr_stream.errors import SettingsError
from srr_stream.settings import (
    ENV_PREFIX,
    PICTURE_REPRESENTATIONS,
    FieldSettings,
    FileSettings,
    KafkaSettings,
    RepresentationName,
    SchemaSettings,
    Settings,
)

_PASSWORD_LOGIN = (("sasl_plain_password", "sasl_plain_password_file"), ("sasl_plain_username",))
_TOKEN_LOGIN = (
    ("sasl_oauthbearer_token_endpoint_url",),
    ("sasl_oauthbearer_client_id",),
    ("sasl_oauthbearer_client_secret", "sasl_oauthbearer_client_secret_file"),
)
"""What a login needs: of each group one."""
_MAX_WINDOW_BYTES = 4 << 30
"""Pixels of a window; training takes some times that."""


def load_settings(path: Path) -> Settings:
    """Read and check a settings file.

    Raises
    ------
    SettingsError
        With every problem at once: its path, what was given, what is allowed, the nearest key.
    """
    return check_settings(read_sections(path))


def read_sections(path: Path) -> dict[str, Any]:
    """Read a settings file without checking what is in it.

    Raises
    ------
    SettingsError
        If it cannot be read, or is no mapping in YAML.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            [f"{path}: cannot be read: {error.strerror}; give the path of a YAML file with -c"]
        ) from error
    except yaml.MarkedYAMLError as error:
        # Not the error's own text: it quotes the line, and the line may hold a password.
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = re.sub(r"'[^']{2,}'", "'…'", error.problem or "unreadable")
        raise SettingsError([f"{path}: is not YAML: {where}{problem}"]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError([f"{path}: is not YAML: {error}"]) from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise SettingsError([f"{path}: must be a mapping of sections, but is a {type(content).__name__}"])
    return content


def check_settings(content: Mapping[str, Any], *, use_environment: bool = True) -> Settings:
    """Check settings given as a mapping; see :func:`load_settings`.

    Without `use_environment` nothing but `content` counts: the demo must never reach the brokers of a production
    whose address is in the shell.
    """
    # A section whose every line is commented out is null in YAML: it means the defaults.
    sections = {str(key): {} if value is None else value for key, value in content.items()}
    # pydantic-settings would take `_env_file` and its like for its own arguments.
    own = {key: sections.pop(key) for key in list(sections) if key.startswith("_")}
    problems = [f"{key}: unknown key; allowed: {', '.join(Settings.model_fields)}" for key in own]
    problems += _unknown_variables() if use_environment else []
    settings: Settings | None = None
    try:
        settings = (Settings if use_environment else FileSettings)(**sections)
    except ValidationError as error:
        details = error.errors()
        problems += [_describe(detail) for detail in details if not _follows_from_another(detail, details)]
    except VariableError as error:
        problems.append(f"environment: {error}; lists and mappings must be JSON there")
    if settings is not None:
        problems += _contradictions(settings)
    if problems or settings is None:
        raise SettingsError(problems)
    return settings


def _contradictions(settings: Settings) -> list[str]:
    problems = []
    window, kafka, output, source = settings.window, settings.kafka, settings.output, settings.input
    live = settings.http.live_timeout
    for key, limit in (
        ("output.flush_timeout", output.flush_timeout),
        ("input.session_timeout", source.session_timeout),
    ):
        if limit >= live:
            problems.append(
                f"{key}: is {limit.total_seconds():g}s; allowed: less than http.live_timeout "
                f"({live.total_seconds():g}s), or an outage of the brokers would look like a dead scorer"
            )
    if output.flush_timeout >= source.max_poll_interval:
        problems.append(
            "output.flush_timeout: allowed: less than input.max_poll_interval, or a slow broker costs membership"
        )
    if settings.delivery.mode == "exactly_once" and source.isolation_level != "read_committed":
        problems.append(
            f"input.isolation_level: is {source.isolation_level}; allowed with delivery.mode: exactly_once: "
            "read_committed, or records whose transaction is not settled yet would be answered twice"
        )
    if window.max_size < window.min_size:
        problems.append(f"window.max_size: is {window.max_size}; allowed: at least window.min_size ({window.min_size})")
    if window.mode != "latest" and window.span is None:
        problems.append(f"window.span: is missing; needed with window.mode: {window.mode}, such as span: 6h")
    if settings.gate.reference_version is not None and settings.gate.max_forgotten_ratio is None:
        problems.append(
            f"gate.reference_version: is {settings.gate.reference_version}; allowed: nothing with "
            "gate.max_forgotten_ratio: null, with which no reference is asked"
        )
    if settings.api.token is not None and settings.api.token_file is not None:
        problems.append("api.token: is set, and so is api.token_file; allowed: one of them")
    if settings.api.token_file is not None and not settings.api.token_file.is_file():
        problems.append(f"api.token_file: there is no file {str(settings.api.token_file)!r}")
    if not output.alerts_topic and not output.scores_topic:
        problems.append("output: verdicts would go nowhere; set output.alerts_topic, output.scores_topic or both")
    written = [
        t for t in (output.alerts_topic, output.scores_topic, output.dead_letter_topic, settings.labels.topic) if t
    ]
    problems += [
        f"output: topic {topic!r} is also an input topic; verdicts would be read again as records; use another name"
        for topic in sorted(set(written) & set(settings.input.topics))
    ]
    if len(set(written)) < len(written):
        problems.append(f"output: topics must differ from each other, got {', '.join(written)}")
    return problems + _kafka_problems(kafka) + _training_problems(settings) + _schema_problems(settings)


def _kafka_problems(kafka: KafkaSettings) -> list[str]:
    given = {key for key in KafkaSettings.model_fields if getattr(kafka, key) is not None}
    problems = _login_problems(kafka, given)
    if given & {"ssl_keyfile", "ssl_password", "ssl_password_file"} and "ssl_certfile" not in given:
        problems.append("kafka.ssl_certfile: is missing; needed with ssl_keyfile, ssl_password and ssl_password_file")
    for key in sorted(given):
        if f"{key}_file" in given:
            problems.append(f"kafka.{key}: is set, and so is kafka.{key}_file; allowed: one of them")
        file = getattr(kafka, key)
        if isinstance(file, Path) and not file.is_file():
            problems.append(f"kafka.{key}: there is no file {str(file)!r}")
    return problems


def _login_problems(kafka: KafkaSettings, given: set[str]) -> list[str]:
    """Return what a login lacks, and what is set for another one: who sets a CA or a password means to use it."""
    protocol, mechanism = kafka.security_protocol, kafka.sasl_mechanism
    has_login, has_token = protocol.startswith("SASL"), mechanism == "OAUTHBEARER"
    problems = []
    if has_login:
        if mechanism is None:
            problems.append(
                f"kafka.sasl_mechanism: is missing; needed with security_protocol {protocol}: "
                "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
            )
        problems += [
            f"kafka.{keys[-1]}: is missing; needed with SASL by {mechanism or 'a password'}"
            + (f" (or {keys[0]})" if len(keys) > 1 else "")
            for keys in (_TOKEN_LOGIN if has_token else _PASSWORD_LOGIN)
            if not given & set(keys)
        ]
    used = (
        *(("ssl_",) if protocol.endswith("SSL") else ()),
        *(("sasl_mechanism", "sasl_oauthbearer_" if has_token else "sasl_plain_") if has_login else ()),
        *(("ssl_cafile",) if has_login and has_token else ()),  # for the token endpoint
        "ssl_check_hostname",  # has a default
    )
    unused = [key for key in sorted(given) if key.startswith(("sasl_", "ssl_")) and not key.startswith(used)]
    how = f"security_protocol {protocol}" + (f" and sasl_mechanism {mechanism}" if has_login else "")
    return problems + [f"kafka.{key}: is set; not used with {how}; remove it or correct these" for key in unused]


def _training_problems(settings: Settings) -> list[str]:
    training = settings.training
    if training.gamma is not None and training.contamination is not None:
        return [
            f"training.gamma: is {training.gamma}; allowed: nothing beside training.contamination "
            f"({training.contamination}), from which gamma follows; give one of them"
        ]
    has_picture = any(field.kind is FieldKind.IMAGE for field in settings.record.fields)
    if has_picture != (training.representation in PICTURE_REPRESENTATIONS):
        suiting = [name for name in get_args(RepresentationName) if (name in PICTURE_REPRESENTATIONS) == has_picture]
        return [
            f"training.representation: is {training.representation!r}; allowed with record.fields "
            f"{'of kind image' if has_picture else 'that are no images'}: {', '.join(suiting)}"
        ]
    if training.classifier_options and training.classifier is None:
        return ["training.classifier_options: are given without training.classifier; name it"]
    if not training.representation_options and training.classifier is None:
        return []  # spares a command that only checks settings the second that importing the models takes
    for key, part in (
        ("representation_options", training.model_copy(update={"classifier": None, "classifier_options": {}})),
        ("classifier_options", training),
    ):
        try:
            make_training_config(settings.model_copy(update={"training": part}))
        except ValueError as error:
            return [f"training.{key}: {error}"]
    return []


def _schema_problems(settings: Settings) -> list[str]:
    problems = [
        problem
        for i, field in enumerate(settings.record.fields)
        for problem in _field_problems(f"record.fields.{i}", field, settings.record)
    ]
    if problems:
        return problems
    try:
        schema = record_schema(settings.record)
    except ValueError as error:
        return [f"record.{error}"]
    if settings.record.format == "image" and (schema.image_field is None or len(schema.fields) > 1):
        names = ", ".join(field.name for field in schema.fields)
        return [f"record.fields: are {names}; allowed with record.format: image: one field of kind image, nothing else"]
    if schema.image_field is not None and schema.image_field.image is not None:
        return _window_problems(settings.window.max_size, schema.image_field.image)
    return []


def _field_problems(path: str, field: FieldSettings, schema: SchemaSettings) -> list[str]:
    if field.kind is not FieldKind.IMAGE:
        return [
            f"{path}.{key}: is {getattr(field, key)!r}; allowed: with kind: image only, and this is {field.kind.value}"
            for key in ("size", "mode", "resize")
            if key in field.model_fields_set
        ]
    problems = []
    if field.size is None:
        problems.append(f"{path}.size: is missing; needed with kind: image, such as size: [224, 224]")
    elif field.size[0] * field.size[1] > schema.max_pixels:
        problems.append(
            f"{path}.size: is {list(field.size)}; allowed: at most record.max_pixels ({schema.max_pixels}) pixels"
        )
    if not field.required:
        problems.append(f"{path}.required: is False; allowed: true with kind: image; nothing takes a picture's place")
    return problems


def _window_problems(max_size: int, image: ImageSpec) -> list[str]:
    n_bytes = max_size * image.n_bytes
    if n_bytes <= _MAX_WINDOW_BYTES:
        return []
    return [
        f"window.max_size: is {max_size}; pictures of {image.width} × {image.height} × {image.n_channels} make "
        f"{n_bytes / 2**30:.1f} GiB of it; allowed: {_MAX_WINDOW_BYTES / 2**30:g} GiB, that is at most "
        f"{_MAX_WINDOW_BYTES // image.n_bytes} pictures; lower window.max_size or the size in record.fields"
    ]


def _follows_from_another(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """Return whether a list is too short only because what is in it is wrong."""
    where = detail["loc"]
    return detail["type"] == "too_short" and any(
        len(other["loc"]) > len(where) and other["loc"][: len(where)] == where for other in details
    )


def _describe(detail: ErrorDetails) -> str:
    """Say a validation error as path, what was given, what is allowed, and the nearest key."""
    where = [str(part) for part in detail["loc"]]
    path = ".".join(where)
    if detail["type"] == "extra_forbidden":
        allowed = _keys_at(where[:-1])
        near = difflib.get_close_matches(where[-1], allowed, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(allowed)}"
        return f"{path}: unknown key; {advice}"
    if detail["type"] == "missing":
        return f"{path}: is missing; it has no default"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "model_type":
        message = f"a mapping of {', '.join(_keys_at(where))}"
    elif detail["type"] == "tuple_type":
        message = "a list"
    return f"{path}: is {_shown(path, detail['input'])}; allowed: {message}"


def _shown(path: str, given: object) -> str:
    """Show a wrong value, but never a secret, nor what may contain one."""
    if path == "kafka" or any(word in path for word in ("password", "secret", "token")):
        return f"a {type(given).__name__} (not shown)"
    shown = repr(given)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _keys_at(where: list[str]) -> list[str]:
    """Return the keys that are allowed at a path of the settings."""
    model: type[BaseModel] = Settings
    for part in where:
        if part.isdigit():
            continue
        annotation: Any = model.model_fields[part].annotation
        inner = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        model = next(a for a in inner if issubclass(a, BaseModel))
    return list(model.model_fields)


def _unknown_variables() -> list[str]:
    """Return a problem for every ``SRR__SECTION`` of the environment that is no section.

    Keys inside a section are checked by the section itself; a section that does not exist would be ignored.
    """
    problems = []
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            section = name[len(ENV_PREFIX) :].split("__")[0].lower()
            if section not in Settings.model_fields:
                near = difflib.get_close_matches(section, list(Settings.model_fields), n=1)
                advice = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(Settings.model_fields)}"
                problems.append(f"environment variable {name}: unknown section {section!r}; {advice}")
    return problems
