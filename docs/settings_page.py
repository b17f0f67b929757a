"""docs/reference/settings.md, from the settings' own descriptions."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize, SecretStr
from pydantic.fields import FieldInfo

from docs.markdown import code, plain_code, table
from srr_stream.reload import RELOADABLE
from srr_stream.settings import ENV_PREFIX, FieldSettings, InstanceId, PublicUrl, Settings, TokenUrl

_WORDS: Mapping[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true`, `false`",
    timedelta: "duration",
    ByteSize: "size",
    SecretStr: "secret text",
    Path: "path",
    PublicUrl: "http(s) address",
    TokenUrl: "http(s) address",
    InstanceId: "text of letters, digits, `.`, `_`, `-`",
}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
_SUFFIXES_S = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def settings(note: str) -> str:
    """Return the page; `note` says where it comes from."""
    sections = "".join(_section(name, info) for name, info in Settings.model_fields.items())
    fields = table(
        ["key", "values", "default", "meaning"],
        ((code(key), values(info), default(info), _meaning(info)) for key, info in FieldSettings.model_fields.items()),
    )
    return f"""# Settings

{note}
One YAML file, given to every command with `-c`, and the environment over it: the variable of a setting is
`{ENV_PREFIX}SECTION__KEY`, lists and mappings are JSON there. `srr-stream check-config -c FILE` says everything that is
wrong at once. [configs/reference.yaml](../../configs/reference.yaml) is the same as a file to start from.

Durations have a unit: `250ms`, `45s`, `15m`, `1h30m`, `2d`. So do sizes: `512KiB`, `1MiB`, `4GB`. *now*: a running
service takes a change over ([reload.md](../reload.md)); *restart*: it refuses the file until it is started anew.
{sections}
## One of `record.fields`
{fields}
What may be said of pictures, and what becomes of them: [images.md](../images.md).
"""


def _section(name: str, info: FieldInfo) -> str:
    kind = info.annotation
    assert isinstance(kind, type)
    assert issubclass(kind, BaseModel)
    rows = (
        (
            code(f"{name}.{key}"),
            values(setting),
            default(setting),
            "now" if f"{name}.{key}" in RELOADABLE else "restart",
            _meaning(setting),
            code(f"{ENV_PREFIX}{name}__{key}".upper()),
        )
        for key, setting in kind.model_fields.items()
    )
    head = ["setting", "values", "default", "change", "meaning", "environment"]
    return f"\n## {name}\n{plain_code(kind.__doc__ or '')}\n\n{table(head, rows)}"


def _meaning(info: FieldInfo) -> str:
    return plain_code(info.description or "")


def values(info: FieldInfo) -> str:
    """Return what a setting may be, in words."""
    kinds = [kind for kind in _alternatives(info.annotation) if kind is not type(None)]
    words = _with_bounds(", ".join(map(_values, kinds)), info.metadata)
    return words if len(kinds) == len(_alternatives(info.annotation)) else f"{words}, or `null`"


def _alternatives(kind: Any) -> Sequence[Any]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _values(kind: Any) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = [each for given in inner[1:] for each in getattr(given, "metadata", [given])]
        return _with_bounds(_values(inner[0]), bounds)
    if origin is Literal:
        return ", ".join(map(code, inner))
    if origin is tuple:
        return f"list of {_values(inner[0])}" if inner[-1] is Ellipsis else f"list of {len(inner)}: {_values(inner[0])}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(code(member.value) for member in kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "mappings"
    assert isinstance(origin, type), kind
    assert issubclass(origin, Mapping), kind
    return "mapping"


def _with_bounds(words: str, metadata: Iterable[Any]) -> str:
    bounds = {name: getattr(each, name) for each in metadata for name in _BOUNDS if hasattr(each, name)}
    limits = [f"{_BOUNDS[name]} {_number(bounds[name])}" for name in _BOUNDS if name in bounds]
    lengths = [getattr(each, "min_length", None) for each in metadata]
    return f"{words} {', '.join(limits)}".rstrip() + ("".join(f", {length} or more" for length in lengths if length))


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and value > 9999 else f"{value:g}"


def default(info: FieldInfo) -> str:
    """Return the default of a setting as YAML has it."""
    if info.is_required():
        return "must be given"
    return code(_as_yaml(info.get_default(call_default_factory=True)))


def _as_yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, ByteSize):
        return value.human_readable(separator="").replace(".0", "")
    if isinstance(value, Mapping):
        assert not value
        return "{}"
    return "[]" if value == () else str(value)


def _duration(value: timedelta) -> str:
    seconds = value.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    length, suffix = next(each for each in _SUFFIXES_S if seconds % each[0] == 0)
    return f"{seconds / length:g}{suffix}"
