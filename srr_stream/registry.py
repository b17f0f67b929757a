"""Where models are kept: numbered versions that never change, and one small pointer that says which are in use.

Layout below the registry's URL (any fsspec URL)::

    versions/7/model.safetensors   weights, written first
    versions/7/manifest.json       everything else, written last: a version without it does not exist
    current.json                   {"champion": 7, "previous": 6, "challenger": null}
    training-request.json          somebody wants a training

Publishing and promoting are two steps: a model that the gate rejects is published too, with its report, and never
becomes champion. Every write of a file is all or nothing: on a local disk a temporary file is synced and renamed;
object stores replace an object whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from srr_stream.errors import ModelRefused, RegistryError

if TYPE_CHECKING:
    from models.detector import Model

FORMAT_VERSION = 1
_WEIGHTS = "model.safetensors"
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


@dataclass(frozen=True)
class Pointer:
    """Which versions are in use."""

    champion: int | None = None
    previous: int | None = None
    challenger: int | None = None


class _NotJson(RegistryError):
    """A file is there and can be read, but is not the JSON object that it must be."""


class Registry:
    """Versions of models at a URL.

    Parameters
    ----------
    url
        A local path or any fsspec URL (``s3://bucket/models``).
    keep
        How many of the newest versions stay besides those in use.

    Raises
    ------
    RegistryError
        From every method, when the store cannot be read or written; says what, where, and what to do.
    """

    def __init__(self, url: str, *, keep: int = 10) -> None:
        self.url = url
        self._keep = keep
        try:
            self._fs, self._root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise RegistryError(f"registry.url: {url!r} cannot be opened: {error}") from error
        self._is_local = isinstance(self._fs, LocalFileSystem)

    # --- versions ---------------------------------------------------------------------------------------------------

    def versions(self) -> tuple[int, ...]:
        """Return the numbers of all complete versions, oldest first."""
        try:
            found = self._fs.glob(f"{self._root}/versions/*/manifest.json")
        except OSError as error:
            raise self._failure("list", "versions", error) from error
        return tuple(sorted(int(path.split("/")[-2]) for path in found if path.split("/")[-2].isdigit()))

    def publish(self, manifest: Manifest, weights: bytes) -> Manifest:
        """Store a new version under the next free number; it is not in use before :meth:`promote`.

        Returns
        -------
        Manifest
            The manifest as stored: with its version, sizes and checksums.
        """
        version = self._claim()
        manifest = replace(
            manifest,
            version=version,
            files={_WEIGHTS: {"size": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}},
        )
        self._write(f"versions/{version}/{_WEIGHTS}", weights)
        self._write(f"versions/{version}/manifest.json", _to_json(asdict(manifest)))
        return manifest

    def manifest(self, version: int) -> Manifest:
        """Read the manifest of a version."""
        try:
            content = self._read_json(f"versions/{version}/manifest.json")
        except _NotJson as error:
            raise ModelRefused(f"version {version}: {error}", reason="format") from error
        if content is None:
            raise RegistryError(f"registry {self.url}: there is no version {version}; there are {self.versions()}")
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

    def load(self, version: int) -> tuple[Model, Manifest]:
        """Load a version; its weights must have the size and checksum of the manifest.

        Raises
        ------
        ModelRefused
            If they have not, or are no model of this format.
        """
        from models.persistence import model_from_parts

        manifest = self.manifest(version)
        weights = self._read(f"versions/{version}/{_WEIGHTS}")
        if weights is None:
            raise ModelRefused(f"version {version}: {_WEIGHTS} is missing", reason="hash")
        expected = manifest.files.get(_WEIGHTS, {})
        actual = {"size": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
        if actual != expected:
            raise ModelRefused(
                f"version {version}: {_WEIGHTS} is altered or torn: {actual}, not {expected}", reason="hash"
            )
        try:
            return model_from_parts(manifest.model, weights), manifest
        except (KeyError, TypeError, ValueError) as error:
            raise ModelRefused(
                f"version {version}: is no model that can be read: {error!r}", reason="format"
            ) from error

    def prune(self) -> tuple[int, ...]:
        """Delete all but the last `keep` versions and those in use; return the numbers deleted."""
        pointer = self.pointer()
        in_use = {pointer.champion, pointer.previous, pointer.challenger}
        gone = tuple(v for v in self.versions()[: -self._keep] if v not in in_use)
        for version in gone:
            try:
                # The manifest goes first: half deleted must look like never complete.
                self._fs.rm_file(f"{self._root}/versions/{version}/manifest.json")
                self._fs.rm(f"{self._root}/versions/{version}", recursive=True)
            except OSError as error:
                raise self._failure("delete", f"versions/{version}", error) from error
        return gone

    # --- pointer ----------------------------------------------------------------------------------------------------

    def pointer(self) -> Pointer:
        """Return which versions are in use; all None before the first model."""
        content = self._read_json("current.json") or {}
        try:
            pointer = Pointer(**content)
        except TypeError as error:
            raise RegistryError(
                f"registry {self.url}: current.json does not fit: {error}; repair or delete it"
            ) from error
        wrong = {name: value for name, value in asdict(pointer).items() if type(value) not in (int, type(None))}
        if wrong:
            raise RegistryError(
                f"registry {self.url}: current.json does not fit: {wrong}, allowed: numbers of versions and null; "
                "repair or delete it"
            )
        return pointer

    def promote(self, version: int) -> Pointer:
        """Make a version the champion; the old champion becomes `previous`."""
        self.manifest(version)
        old = self.pointer()
        new = Pointer(champion=version, previous=old.champion if old.champion != version else old.previous)
        self._write("current.json", _to_json(asdict(new)))
        return new

    def rollback(self) -> Pointer:
        """Make the previous champion the champion again.

        Raises
        ------
        RegistryError
            If there is none.
        """
        previous = self.pointer().previous
        if previous is None:
            raise RegistryError(f"registry {self.url}: there is no previous version to roll back to")
        return self.promote(previous)

    # --- requests ---------------------------------------------------------------------------------------------------

    def request_training(self, reason: str) -> None:
        """Ask the trainer, wherever it runs, for a training."""
        request = {"reason": reason, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        self._write("training-request.json", _to_json(request))

    def take_request(self) -> str | None:
        """Return the reason of a waiting request and remove it; None if there is none."""
        content = self._read_json("training-request.json")
        if content is None:
            return None
        try:
            self._fs.rm_file(f"{self._root}/training-request.json")
        except OSError as error:
            raise self._failure("delete", "training-request.json", error) from error
        return str(content.get("reason", "asked for"))

    def check_writable(self) -> None:
        """Raise `RegistryError` if nothing can be written: better before a training than after it."""
        name = f"probe-{uuid.uuid4().hex}"
        self._write(name, b"")
        try:
            self._fs.rm_file(f"{self._root}/{name}")
        except OSError as error:
            raise self._failure("delete", name, error) from error

    # --- files ------------------------------------------------------------------------------------------------------

    def _claim(self) -> int:
        """Reserve the next number by making its folder, which on a local disk only one publisher can do."""
        version = max(self.versions(), default=0) + 1
        if not self._is_local:
            return version
        folder = Path(self._root, "versions")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while True:
                try:
                    (folder / str(version)).mkdir()
                    return version
                except FileExistsError:
                    version += 1
        except OSError as error:
            raise self._failure("write", f"versions/{version}", error) from error

    def _write(self, name: str, content: bytes) -> None:
        path = f"{self._root}/{name}"
        try:
            if self._is_local:
                _replace_file(Path(path), content)
            else:
                self._fs.pipe_file(path, content)
        except OSError as error:
            raise self._failure("write", name, error) from error

    def _read(self, name: str) -> bytes | None:
        try:
            content: bytes = self._fs.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failure("read", name, error) from error
        return content

    def _read_json(self, name: str) -> dict[str, Any] | None:
        content = self._read(name)
        if content is None:
            return None
        try:
            parsed = json.loads(content)
        except ValueError as error:
            raise _NotJson(f"registry {self.url}: {name} is not JSON: {error}; repair or delete it") from error
        if not isinstance(parsed, dict):
            raise _NotJson(f"registry {self.url}: {name} must be an object; repair or delete it")
        return parsed

    def _failure(self, verb: str, name: str, error: OSError) -> RegistryError:
        return RegistryError(
            f"registry {self.url}: cannot {verb} {name}: {error.strerror or error}; "
            "check registry.url, rights and space"
        )


def _replace_file(path: Path, content: bytes) -> None:
    """Write a local file so that a reader, or a crash, sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _to_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode()
