"""Where models are kept: numbered versions that never change, and one small pointer that says which are in use.

Layout below the registry's URL (any fsspec URL)::

    versions/7/model.safetensors   weights, written first
    versions/7/refinement.json     for people: what was excluded from the window; not needed to score
    versions/7/neighbours.safetensors   for people: some rows that were kept, as the model sees them; not needed either
    versions/7/manifest.json       everything else, written last: a version without it does not exist
    current.json                   {"champion": 7, "previous": 6, "challenger": null, "reason": "…", "at": "…", …}
    current-copy.json              the same, written before it: what is known when current.json is damaged or lost
    training-request.json          somebody wants a training

Publishing and promoting are two steps: a model that the gate rejects is published too, with its report, and never
becomes champion. How a store writes a file whole, gives a number to one publisher only, and changes the pointer without
losing another's change is in :mod:`srr_stream.registry.files`.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from srr_stream.errors import ModelRefused, RegistryError
from srr_stream.registry.files import open_files
from srr_stream.registry.manifest import FORMAT_VERSION, Manifest, manifest_from_json, manifest_to_json
from srr_stream.registry.pointer import Pointer, pointer_from_json, pointer_to_json, promoted, rolled_back
from srr_stream.registry.pruning import (
    WEIGHTS,
    by_number,
    complete,
    deletion_order,
    file_of,
    leftovers,
    manifest_of,
    superseded,
)
from srr_stream.sealed_json import seal, unseal

if TYPE_CHECKING:
    from models.detector import Model

__all__ = ["FORMAT_VERSION", "GRACE_S", "Manifest", "Pointer", "Registry"]

GRACE_S = 3600.0
"""What a crashed publisher left is deleted when it is as old: no publisher takes so long between two files."""
_POINTER = "current.json"
_COPY = "current-copy.json"
_REQUEST = "training-request.json"
_PROBE_SIZE = 64 * 1024
"""An empty file can still be made on a disk that is full."""
_MAX_TRIES = 20
_REWRITE = "srr-stream models promote N, or rollback, writes it anew"


class Registry:
    """Versions of models at a URL.

    Parameters
    ----------
    url
        A local path or any fsspec URL (``s3://bucket/models``).
    keep
        How many of the newest versions stay besides those in use.
    pinned
        Versions that stay too, such as the one that slow poisoning is looked for against.
    grace_s
        Age in seconds from which :meth:`prune` deletes what a crashed publisher left.
    clock
        Seconds since 1970.

    Raises
    ------
    RegistryError
        From every method, when the store cannot be read or written; says what, where, and what to do.
    """

    def __init__(
        self,
        url: str,
        *,
        keep: int = 10,
        pinned: Collection[int] = (),
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.url = url
        self._keep = keep
        self.pinned = frozenset(pinned)
        self._grace_s = grace_s
        self._clock = clock
        try:
            self._files = open_files(url)
        except (ImportError, ValueError) as error:
            raise RegistryError(f"registry.url: {url!r} cannot be opened: {error}") from error

    # --- versions ---------------------------------------------------------------------------------------------------

    def versions(self) -> tuple[int, ...]:
        """Return the numbers of all complete versions, oldest first."""
        return tuple(sorted(self.sizes()))

    def sizes(self) -> dict[int, int]:
        """Return the bytes that every complete version takes."""
        folders = self._folders()
        return {version: sum(folders[version].values()) for version in complete(folders)}

    def publish(self, manifest: Manifest, weights: bytes, beside: Mapping[str, bytes] | None = None) -> Manifest:
        """Store a new version under the next free number; it is not in use before :meth:`promote`.

        Parameters
        ----------
        beside
            Name → content of what lies beside the weights, for :meth:`beside`.

        Returns
        -------
        Manifest
            The manifest as stored: with its version, sizes and checksums.
        """
        version = self._claim()
        contents = {WEIGHTS: weights, **(beside or {})}
        manifest = replace(
            manifest, version=version, files={name: _seen(content) for name, content in contents.items()}
        )
        try:
            last = manifest_to_json(manifest)
            for name, content in contents.items():
                self._write(file_of(version, name), content)
            self._write(manifest_of(version), last)
        except (RegistryError, ValueError):
            with suppress(OSError):  # of a store that is full, this is what makes room for the next try
                for name in (manifest_of(version), *(file_of(version, name) for name in contents)):
                    self._files.delete(name)
            raise
        return manifest

    def manifest(self, version: int) -> Manifest:
        """Read the manifest of a version.

        Raises
        ------
        ModelRefused
            If it is damaged, altered, or of another format.
        """
        raw = self._read(manifest_of(version))
        if raw is None:
            raise RegistryError(f"registry {self.url}: there is no version {version}; there are {self.versions()}")
        return manifest_from_json(raw, version)

    def load(self, version: int) -> tuple[Model, Manifest]:
        """Load a version; its weights must have the size and checksum of the manifest.

        Raises
        ------
        ModelRefused
            If they have not, or are no model of this format.
        """
        from models.persistence import model_from_parts

        manifest, weights = self._whole(version)
        try:
            return model_from_parts(manifest.model, weights), manifest
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelRefused(
                f"version {version}: is no model that can be read: {error!r}", reason="format"
            ) from error

    def beside(self, version: int, name: str) -> bytes | None:
        """Return what was published beside a version's weights, None if nothing of this name was.

        Raises
        ------
        ModelRefused
            If it, or the manifest, is not as it was written.
        """
        manifest = self.manifest(version)
        return self._checked(manifest, name) if name in manifest.files else None

    def _whole(self, version: int) -> tuple[Manifest, bytes]:
        """Read what a version needs to score; raise `ModelRefused` unless it is as it was written."""
        manifest = self.manifest(version)
        return manifest, self._checked(manifest, WEIGHTS)

    def _checked(self, manifest: Manifest, name: str) -> bytes:
        version = manifest.version
        content = self._read(file_of(version, name))
        if content is None:
            raise ModelRefused(f"version {version}: {name} is missing", reason="hash")
        expected, actual = manifest.files.get(name, {}), _seen(content)
        if actual != expected:
            raise ModelRefused(f"version {version}: {name} is altered or torn: {actual}, not {expected}", reason="hash")
        return content

    def _claim(self) -> int:
        """Reserve the next number, which only one publisher gets."""
        version = max(self._folders(), default=0) + 1
        with self._told("write", f"versions/{version}"):
            while not self._files.claim(f"versions/{version}"):
                version += 1
        return version

    def _folders(self) -> dict[int, dict[str, int]]:
        with self._told("list", "versions"):
            return by_number(self._files.list("versions", is_deep=True))

    # --- pruning ----------------------------------------------------------------------------------------------------

    def prune(
        self, *, is_dry_run: bool = False, on_removal: Callable[[str], None] = lambda name: None
    ) -> tuple[int, ...]:
        """Delete all but the last `keep` versions and those in use, and what crashed publishers left.

        What is younger than `grace_s` may be about to be finished by another publisher, and stays. So does the newest
        number, even if nothing is there any more: none is given out twice.

        Parameters
        ----------
        is_dry_run
            Delete nothing.
        on_removal
            Told the name of each version and leftover that is deleted, or would be.

        Returns
        -------
        tuple of int
            The numbers of the versions deleted.
        """
        if is_dry_run:
            return self._prune(on_removal, lambda names: None)
        with self._told("write", "the lock"), self._files.locked():  # against a promotion of what is being deleted
            return self._prune(on_removal, self._delete)

    def _prune(self, on_removal: Callable[[str], None], delete: Callable[[list[str]], None]) -> tuple[int, ...]:
        folders = self._folders()
        gone = []
        in_use = self.pointer().in_use
        kept = in_use | self.pinned | self._references(in_use.intersection(complete(folders)))
        for version in superseded(folders, kept, self._keep):
            if version in self.pointer().in_use:  # promoted meanwhile, in a store that has no lock
                continue
            delete(deletion_order(version, folders[version]))
            on_removal(f"versions/{version}")
            gone.append(version)
        with self._told("list", "files"):
            at_root = self._files.list("", is_deep=False)
        for names in leftovers(folders, at_root):
            if self._is_old(names):
                delete(names)
                on_removal(names[-1].rstrip("/"))
        return tuple(gone)

    def _references(self, versions: Collection[int]) -> frozenset[int]:
        """Return what slow poisoning is looked for against in the successors of `versions`."""
        found = set()
        for version in versions:
            with suppress(ModelRefused):  # of a damaged manifest nobody takes a reference
                noted = self.manifest(version).gate.get("reference")
                found.update([noted["version"]] if noted else [])
        return frozenset(found)

    def _is_old(self, names: list[str]) -> bool:
        with self._told("read", names[0]):
            times = [self._files.modified(name) for name in names]
        return all(at is None or self._clock() - at > self._grace_s for at in times)

    def _delete(self, names: list[str]) -> None:
        for name in names:
            with self._told("delete", name):
                self._files.delete(name)

    # --- pointer ----------------------------------------------------------------------------------------------------

    def pointer(self) -> Pointer:
        """Return which versions are in use; all None before the first model.

        Raises
        ------
        RegistryError
            Also if current.json is damaged: who scores keeps the model it has. :meth:`promote` and :meth:`rollback`
            write it anew.
        """
        raw = self._read(_POINTER)
        if raw is None:
            return Pointer()
        try:
            return pointer_from_json(raw)
        except ValueError as error:
            raise RegistryError(f"registry {self.url}: {_POINTER} {error}; {_REWRITE}") from error

    def promote(self, version: int, *, reason: str = "") -> Pointer:
        """Make a version the champion; the old champion becomes `previous`. A challenger stays, unless it is the one.

        Raises
        ------
        ModelRefused
            If the version is torn or altered; the pointer stays as it is.
        """

        def change(old: Pointer) -> Pointer:
            self._whole(version)
            return promoted(old, version, reason=reason, at=self._now())

        return self._change_pointer(change)

    def rollback(self, *, reason: str = "", version: int | None = None) -> Pointer:
        """Make the previous champion the champion again.

        Parameters
        ----------
        version
            The champion that is meant; None: whichever it is.

        What was the champion becomes `previous` and is marked as rolled back: another rollback does not return to it,
        only :meth:`promote` does.

        Raises
        ------
        RegistryError
            If there is none, or it was itself rolled back, or the champion is another than `version` by now.
        ModelRefused
            If it is torn or altered; the pointer stays as it is.
        """

        def change(old: Pointer) -> Pointer:
            if version is not None and old.champion != version:
                raise RegistryError(
                    f"registry {self.url}: version {version} is not rolled back: version {old.champion} took its place"
                )
            if old.previous is None:
                raise RegistryError(f"registry {self.url}: there is no previous version to roll back to")
            if old.previous == old.rolled_back:
                raise RegistryError(
                    f"registry {self.url}: version {old.previous} was rolled back itself"
                    f" ({old.reason or 'no reason given'}); srr-stream models promote {old.previous} brings it back"
                )
            self._whole(old.previous)
            return rolled_back(old, reason=reason, at=self._now())

        return self._change_pointer(change)

    def propose(self, version: int) -> Pointer:
        """Make a version the challenger: it waits for a person to promote it, and is not pruned meanwhile.

        Raises
        ------
        RegistryError
            If it is the champion.
        ModelRefused
            If it is torn or altered.
        """

        def change(old: Pointer) -> Pointer:
            if version == old.champion:
                raise RegistryError(f"registry {self.url}: version {version} cannot be proposed: it is the champion")
            self._whole(version)
            return replace(old, challenger=version)

        return self._change_pointer(change)

    def withdraw(self) -> Pointer:
        """Have no challenger any more."""
        return self._change_pointer(lambda old: replace(old, challenger=None))

    def _change_pointer(self, change: Callable[[Pointer], Pointer]) -> Pointer:
        """Apply a change to the pointer as it is, not as it was before somebody else changed it."""
        new, raw = Pointer(), None
        for _ in range(_MAX_TRIES):
            with self._told("write", _POINTER), self._files.locked():
                found, tag = self._files.read_tagged(_POINTER)
                if raw is not None and found == raw:
                    return new  # the answer got lost on the way, the write did not
                new = change(self._known_pointer(found))
                raw = pointer_to_json(new)
                self._files.write(_COPY, raw)
                if self._files.write_if(_POINTER, raw, tag):
                    return new
        raise RegistryError(
            f"registry {self.url}: cannot write {_POINTER}: others changed it {_MAX_TRIES} times meanwhile; try again"
        )

    def _known_pointer(self, found: bytes | None) -> Pointer:
        """Return what the pointer says, or its copy if it is damaged or lost; if both are, an empty one."""
        if found is not None:
            with suppress(ValueError):
                return pointer_from_json(found)
        copy = self._files.read(_COPY)
        if copy is not None:
            with suppress(ValueError):
                return pointer_from_json(copy)
        return Pointer()

    # --- requests ---------------------------------------------------------------------------------------------------

    def request_training(self, reason: str) -> None:
        """Ask the trainer, wherever it runs, for a training."""
        self._write(_REQUEST, seal({"reason": reason, "at": self._now()}))

    def take_request(self) -> str | None:
        """Return the reason of a waiting request and remove it; None if there is none. A damaged request is one too."""
        raw = self._read(_REQUEST)
        if raw is None:
            return None
        try:
            reason = str(unseal(raw).get("reason", "asked for"))
        except ValueError as error:
            reason = f"asked for, but {_REQUEST} {error}"
        self._delete([_REQUEST])
        return reason

    def check_writable(self) -> None:
        """Raise `RegistryError` if nothing can be written: better before a training than after it."""
        name = f"probe-{uuid.uuid4().hex}"
        self._write(name, bytes(_PROBE_SIZE))
        self._delete([name])

    # --- files ------------------------------------------------------------------------------------------------------

    def _write(self, name: str, content: bytes) -> None:
        with self._told("write", name):
            self._files.write(name, content)

    def _read(self, name: str) -> bytes | None:
        with self._told("read", name):
            return self._files.read(name)

    @contextmanager
    def _told(self, verb: str, name: str) -> Iterator[None]:
        """Say what failed, where, and what to do."""
        try:
            yield
        except OSError as error:
            why = " ".join((error.strerror or str(error)).split())
            raise RegistryError(
                f"registry {self.url}: cannot {verb} {name}: {why}; check registry.url, rights and space"
            ) from error

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")


def _seen(content: bytes) -> dict[str, Any]:
    """Return what a manifest says of a file."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
