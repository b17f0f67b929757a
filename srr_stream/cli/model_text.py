"""What ``srr-stream models`` says of a version, for people and as plain values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from srr_stream.errors import ModelRefused

if TYPE_CHECKING:
    from srr_stream.registry import Manifest, Pointer, Registry

ROLES = ("champion", "previous", "challenger")
LIST_HEADER = ["version", "role", "created", "representation", "records", "excluded", "size", "gate"]


def summary_of(registry: Registry, version: int, size: int, pointer: Pointer) -> dict[str, Any]:
    """Return a version's entry in the list, also of one that is refused."""
    row: dict[str, Any] = {"version": version, "role": role_of(version, pointer), "size": size}
    try:
        manifest = registry.manifest(version)
    except ModelRefused as error:
        return row | {"problem": str(error)}
    return row | {
        "created": manifest.created_at,
        "representation": manifest.model.get("representation"),
        "n_records": manifest.window.get("n_records"),
        "excluded_ratio": manifest.training.get("excluded_ratio"),
        "gate": {"passed": manifest.gate.get("passed"), "reason": manifest.gate.get("reason")},
        "reason": manifest.reason,
    }


def list_row(row: Mapping[str, Any]) -> list[str]:
    """Return the same as cells below :data:`LIST_HEADER`."""
    start = [str(row["version"]), row["role"] or "-"]
    if "problem" in row:
        return [*start, "-", "-", "-", "-", _bytes(row["size"]), row["problem"]]
    excluded, n_records = row["excluded_ratio"], row["n_records"]
    return [
        *start,
        row["created"],
        word(row["representation"]),
        "-" if n_records is None else f"{n_records:,}",
        "-" if excluded is None else f"{excluded:.4f}",
        _bytes(row["size"]),
        _decision(row["gate"]),
    ]


def role_of(version: int, pointer: Pointer) -> str | None:
    """Return what a version is used as."""
    for role in ROLES:
        if getattr(pointer, role) == version:
            return f"{role}, rolled back" if version == pointer.rolled_back else role
    return None


def _decision(gate: Mapping[str, Any]) -> str:
    if gate.get("passed") is None:
        return "-"
    return f"{'passed' if gate['passed'] else 'rejected'}: {gate.get('reason') or 'no reason given'}"


def facts_of(manifest: Manifest, role: str | None) -> dict[str, Any]:
    """Return what a person wants to know of a version, by name."""
    facts = {"version": manifest.version, "role": role, "created": manifest.created_at, "reason": manifest.reason}
    facts |= {f"window {key}": value for key, value in manifest.window.items() if key != "ranges"}
    facts |= {f"window {name}": text for name, text in _ranges(manifest).items()}
    facts |= {f"training {key}": value for key, value in _leaves(manifest.training)}
    facts |= {f"model {key}": value for key, value in manifest.model.items() if not isinstance(value, Mapping | list)}
    facts |= {f"file {name}": _bytes(said["size"]) for name, said in manifest.files.items()}
    facts |= {f"library {name}": text for name, text in manifest.libraries.items()}
    return facts | {"schema": manifest.schema_digest, "gate": _decision(manifest.gate)}


def checks_of(manifest: Manifest) -> list[list[str]]:
    """Return a row for each thing that the gate looked at."""
    return [
        [check["name"], word(check["value"]), check["bound"] or "only reported", word(check["passed"])]
        for check in manifest.gate.get("checks", [])
    ]


def _ranges(manifest: Manifest) -> dict[str, str]:
    ranges = manifest.window.get("ranges", [])
    return {f"{r['topic']}-{r['partition']}": f"offsets {r['start']:,} to {r['stop']:,}" for r in ranges}


def comparable(manifest: Manifest) -> dict[str, Any]:
    """Return what two versions may differ in, by name: all but times, and what was learned but its calibration."""
    parts = manifest.model.get("parts", {})
    facts = {"schema": manifest.schema_digest}
    facts |= {f"window.{key}": value for key, value in manifest.window.items() if key != "ranges"}
    facts |= {f"window.{name}": text for name, text in _ranges(manifest).items()}
    facts |= {f"training.{key}": value for key, value in _leaves(manifest.training) if not key.startswith("seconds.")}
    facts |= {f"model.{key}": value for key, value in manifest.model.items() if key not in ("parts", "facts")}
    for part in ("calibration", "classifier"):
        facts |= {f"{part}.{key}": value for key, value in _leaves(parts.get(part, {}))}
    facts |= {"gate": _decision(manifest.gate)}
    facts |= {f"gate.{check['name']}": check["value"] for check in manifest.gate.get("checks", [])}
    return facts | {f"library.{name}": text for name, text in manifest.libraries.items()}


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return lines with columns under each other; the last one is as long as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def word(value: object) -> str:
    """Return a value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _bytes(size: int) -> str:
    value, units = float(size), iter(("B", "KiB", "MiB", "GiB"))
    unit = next(units)
    for larger in units:
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
