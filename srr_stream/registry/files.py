"""The files below a registry's URL: written whole or not at all, claimed by one only, changed without losing a change.

A local disk has renames, folders that one alone can make, and locks for it; an object store replaces objects whole and,
where it can, writes on a condition. Whatever a store's client raises comes out as an `OSError`; what it means, and what
the files are, is left to the registry.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC
from pathlib import Path
from typing import Any, Protocol

from fsspec.core import split_protocol, url_to_fs
from fsspec.implementations.local import LocalFileSystem

_LOCK = ".lock"
_LOCK_PATIENCE_S = 10.0
_LOCK_POLL_S = 0.01
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")
_REFUSED_CONDITION = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_ANY = ""
"""A tag that says nothing of the content: the store has no conditions for it, the last writer wins."""


class Files(Protocol):
    """What the registry needs of a store. Names are relative to the root; every method may raise `OSError`."""

    def read(self, name: str) -> bytes | None:
        """Return the content, None if there is no such file."""

    def write(self, name: str, content: bytes) -> None:
        """Replace a file: a reader, or a crash, sees the old content or the new one, never a part."""

    def delete(self, name: str) -> None:
        """Delete a file, or an empty folder (its name ends in a slash); gone already is fine."""

    def list(self, folder: str, *, is_deep: bool) -> dict[str, int]:
        """Return name → size of the files in a folder, with `is_deep` in those below too, and folders with a slash."""

    def modified(self, name: str) -> float | None:
        """Return when a file was last changed, in seconds since 1970; None if it is gone."""

    def claim(self, folder: str) -> bool:
        """Make a folder one's own; False if somebody has."""

    def locked(self) -> AbstractContextManager[None]:
        """Keep others who ask for the same away, where the store can; a crash lets go."""

    def read_tagged(self, name: str) -> tuple[bytes | None, str | None]:
        """Return the content, and a tag of it for :meth:`write_if`."""

    def write_if(self, name: str, content: bytes, tag: str | None) -> bool:
        """Replace a file unless it has changed since it was read with `tag`; False if it has."""


def open_files(url: str) -> Files:
    """Return the files below a URL; raises `ImportError` or `ValueError` if nothing here can open it."""
    # Others write too: a listing that is remembered would miss their versions.
    options: dict[str, Any] = {"use_listings_cache": False}
    if split_protocol(url)[0] in ("s3", "s3a"):
        options["max_concurrency"] = 1  # else every read of the pointer asks for the size first: two requests
    fs, root = url_to_fs(url, **options)
    return LocalFiles(Path(root)) if isinstance(fs, LocalFileSystem) else ObjectFiles(fs, root)


def is_temporary(name: str) -> bool:
    """Return whether a file was being written when its writer crashed, or is being written."""
    return _TEMPORARY.fullmatch(name.rsplit("/", 1)[-1]) is not None


class LocalFiles:
    """Files on a local disk, or a shared one that has locks."""

    def __init__(self, root: Path, *, lock_patience_s: float = _LOCK_PATIENCE_S) -> None:
        self._root = root
        self._lock_patience_s = lock_patience_s

    def read(self, name: str) -> bytes | None:  # noqa: D102
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:  # noqa: D102
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            _write_and_sync(temporary, content)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    def delete(self, name: str) -> None:  # noqa: D102
        path = self._root / name
        try:
            if name.endswith("/"):
                path.rmdir()
            else:
                path.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # somebody writes there again
                raise

    def list(self, folder: str, *, is_deep: bool) -> dict[str, int]:  # noqa: D102
        found: dict[str, int] = {}
        try:
            with os.scandir(self._root / folder) as scan:
                entries = [*scan]
        except (FileNotFoundError, NotADirectoryError):
            return found
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if not entry.is_dir():
                    found[name] = entry.stat().st_size
                elif is_deep:
                    found |= {f"{name}/": 0, **self.list(name, is_deep=True)}
            except FileNotFoundError:  # renamed or pruned meanwhile, by another process
                continue
        return found

    def modified(self, name: str) -> float | None:  # noqa: D102
        try:
            return (self._root / name).stat().st_mtime
        except FileNotFoundError:
            return None

    def claim(self, folder: str) -> bool:  # noqa: D102
        path = self._root / folder
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            return False
        # The pointer must not outlive the folder that it names.
        _sync_folder(path.parent)
        _sync_folder(self._root)
        return True

    @contextmanager
    def locked(self) -> Iterator[None]:  # noqa: D102
        self._root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._await_lock(descriptor)
            yield
        finally:
            os.close(descriptor)  # and with it the lock; the system does it for a process that dies

    def _await_lock(self, descriptor: int) -> None:
        until = time.monotonic() + self._lock_patience_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    waited = f"another process has held {_LOCK} for {self._lock_patience_s:g} s"
                    raise TimeoutError(errno.ETIMEDOUT, waited) from None
                time.sleep(_LOCK_POLL_S)

    def read_tagged(self, name: str) -> tuple[bytes | None, str | None]:  # noqa: D102
        return self.read(name), _ANY

    def write_if(self, name: str, content: bytes, tag: str | None) -> bool:  # noqa: D102  # the lock sees to it
        self.write(name, content)
        return True


class ObjectFiles:
    """Objects of any fsspec file system; conditions are known of S3 (If-None-Match, If-Match) and of new objects.

    A store that refuses conditional writes as not implemented is written without: two publishers at once could then
    take one number, and of two pointers written at once the last one counts.
    """

    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._root = root.rstrip("/")
        protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
        self._has_etags = "s3" in protocols

    def read(self, name: str) -> bytes | None:  # noqa: D102
        try:
            with _as_os_error():
                content: bytes = self._fs.cat_file(self._path(name))
        except FileNotFoundError as error:
            _raise_if_bucket_is_gone(error)
            return None
        return content

    def write(self, name: str, content: bytes) -> None:  # noqa: D102
        with _as_os_error():
            self._fs.pipe_file(self._path(name), content)

    def delete(self, name: str) -> None:  # noqa: D102
        with _as_os_error(), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def list(self, folder: str, *, is_deep: bool) -> dict[str, int]:  # noqa: D102
        path = self._path(folder)
        try:
            with _as_os_error():
                found = self._fs.find(path, detail=True).values() if is_deep else self._fs.ls(path, detail=True)
        except FileNotFoundError as error:
            _raise_if_bucket_is_gone(error)
            return {}
        files = [info for info in found if info["type"] == "file"]
        return {info["name"].removeprefix(f"{self._root}/"): info["size"] or 0 for info in files}

    def modified(self, name: str) -> float | None:  # noqa: D102
        try:
            with _as_os_error():
                at = self._fs.modified(self._path(name))
        except FileNotFoundError:
            return None
        return float((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())

    def claim(self, folder: str) -> bool:  # noqa: D102
        return self._write_on_condition(f"{folder}/claim", b"", mode="create")

    def locked(self) -> AbstractContextManager[None]:  # noqa: D102
        return nullcontext()

    def read_tagged(self, name: str) -> tuple[bytes | None, str | None]:  # noqa: D102
        if not self._has_etags:
            content = self.read(name)
            return content, None if content is None else _ANY
        try:
            # Before the content: a tag that is too old only makes the write be tried again.
            with _as_os_error():
                tag = self._fs.info(self._path(name), refresh=True).get("ETag") or _ANY
        except FileNotFoundError as error:
            _raise_if_bucket_is_gone(error)
            return None, None
        return self.read(name), tag

    def write_if(self, name: str, content: bytes, tag: str | None) -> bool:  # noqa: D102
        if tag is None:
            return self._write_on_condition(name, content, mode="create")
        if tag == _ANY:
            self.write(name, content)
            return True
        return self._write_on_condition(name, content, IfMatch=tag)

    def _write_on_condition(self, name: str, content: bytes, **condition: str) -> bool:
        path = self._path(name)
        try:
            with _as_os_error():
                self._fs.pipe_file(path, content, **condition)
        except OSError as error:
            if isinstance(error, FileExistsError) or _code(error) in _REFUSED_CONDITION:
                return False
            if error.errno != errno.ENOSYS:
                raise
            if "mode" in condition and self.read(name) is not None:
                return False
            self.write(name, content)
        return True

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # each store's client has errors of its own, from four libraries in the case of S3
        raise OSError(f"{type(error).__name__}: {error}") from error


def _code(error: OSError) -> str:
    """Return the store's own word for an error, empty if it gave none."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _raise_if_bucket_is_gone(error: FileNotFoundError) -> None:
    """An object that is missing is nothing yet; a bucket that is missing is a fault."""
    if _code(error) == "NoSuchBucket":
        raise OSError(f"the bucket does not exist: {error}") from error


def _write_and_sync(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
