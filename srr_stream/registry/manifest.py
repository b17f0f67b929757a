"""All that is known of a version, and its JSON: what cannot be read is refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from srr_stream.errors import ModelRefused
from srr_stream.sealed_json import NotSealed, seal, unseal

FORMAT_VERSION = 1
_OBJECTS = ("schema", "window", "training", "gate", "model", "canary", "files", "libraries")


@dataclass(frozen=True)
class Manifest:
    """All that is known of a version, as JSON. Enough to repeat its training while the log is retained."""

    version: int
    created_at: str
    reason: str
    """Why it was trained, in words."""
    schema: Mapping[str, Any]
    schema_digest: str
    window: Mapping[str, Any]
    """``ranges`` (topic, partition, start, stop), ``n_records``, ``n_bad``."""
    training: Mapping[str, Any]
    """Seed and the training's report: γ, K, excluded share, seconds, …"""
    gate: Mapping[str, Any]
    model: Mapping[str, Any]
    """The model's description; its weights are beside."""
    canary: Mapping[str, Any]
    """``columns`` of some made-up rows and the ``score`` that they must get."""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name → ``size`` and ``sha256``."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def manifest_to_json(manifest: Manifest) -> bytes:
    """Return a manifest as it is stored; raises `ValueError` for numbers that JSON does not know."""
    return seal(asdict(manifest))


def manifest_from_json(raw: bytes, version: int) -> Manifest:
    """Return the stored manifest of a version; raises `ModelRefused` if it is damaged, altered or of another format."""
    try:
        content = unseal(raw)
    except ValueError as error:
        reason = "hash" if isinstance(error, NotSealed) else "format"
        raise ModelRefused(f"version {version}: manifest.json {error}", reason=reason) from error
    if content.get("format_version") != FORMAT_VERSION:
        raise ModelRefused(
            f"version {version} has format {content.get('format_version')!r}, this program reads {FORMAT_VERSION}; "
            "use the program that wrote it or train anew",
            reason="format",
        )
    try:
        manifest = Manifest(**content)
    except TypeError as error:
        raise ModelRefused(f"version {version}: manifest.json does not fit: {error}", reason="format") from error
    wrong = [name for name in _OBJECTS if not isinstance(getattr(manifest, name), dict)]
    if wrong or manifest.version != version:
        problem = f"no objects: {', '.join(wrong)}" if wrong else f"it says version {manifest.version!r}"
        raise ModelRefused(f"version {version}: manifest.json does not fit: {problem}", reason="format")
    return manifest
