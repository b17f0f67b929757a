"""What may go from a registry: versions that are neither new nor in use, and what crashed publishers left behind.

Pure functions over names; the registry lists, looks how old leftovers are, and deletes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from srr_stream.registry.files import is_temporary

WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"

_PROBE = re.compile(r"probe-[0-9a-f]{32}")
_NUMBERED = re.compile(r"versions/([1-9][0-9]*)/")

Folders = Mapping[int, Mapping[str, int]]
"""Number → what is below it, name → size. Complete or not, a number that is there is taken."""


def file_of(version: int, name: str) -> str:
    """Return where a file of a version lies."""
    return f"versions/{version}/{name}"


def manifest_of(version: int) -> str:
    """Return the name of the file that makes a version one."""
    return file_of(version, MANIFEST)


def by_number(names: Mapping[str, int]) -> dict[int, dict[str, int]]:
    """Return the files below each number; what is below none is left out, and so left alone."""
    folders: dict[int, dict[str, int]] = {}
    for name, size in names.items():
        match = _NUMBERED.match(name)
        if match:
            folders.setdefault(int(match[1]), {})[name] = size
    return folders


def complete(folders: Folders) -> tuple[int, ...]:
    """Return the numbers of the versions that are whole as far as names tell, oldest first."""
    return tuple(sorted(version for version, files in folders.items() if manifest_of(version) in files))


def superseded(folders: Folders, in_use: Collection[int], keep: int) -> tuple[int, ...]:
    """Return the versions that may go: all but the last `keep` and those in use."""
    return tuple(version for version in complete(folders)[:-keep] if version not in in_use)


def deletion_order(version: int, files: Collection[str]) -> list[str]:
    """Return a version's files as they must be deleted: half deleted must look like never complete."""
    first = manifest_of(version)
    return [first, *sorted(set(files) - {first}, key=_claims_last)]


def leftovers(folders: Folders, at_root: Collection[str]) -> Iterator[list[str]]:
    """Yield what belongs to no version, in the order to delete it, whatever its age.

    The newest number stays taken even if nothing came of it: none is given out twice.
    """
    for name in at_root:
        if is_temporary(name) or _PROBE.fullmatch(name):
            yield [name]
    newest = max(folders, default=0)
    for version, files in sorted(folders.items()):
        names = sorted(files, key=_claims_last)
        if manifest_of(version) in files:
            yield from ([name] for name in names if is_temporary(name))
        elif version != newest:
            yield names
        elif rest := [name for name in names if not _is_claim(name)]:
            yield rest


def _is_claim(name: str) -> bool:
    """Return whether a name is what holds a number: a folder on a disk, an object in an object store."""
    return name.endswith(("/", "/claim"))


def _claims_last(name: str) -> tuple[bool, bool, str]:
    return name.endswith("/"), _is_claim(name), name
