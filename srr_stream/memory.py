"""How near this process is to the end of the memory that it may have: its control group's limit, or its own."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_UNLIMITED = 1 << 62
"""Version 1 of control groups says a number near 2**63 where there is no limit."""


class MemoryUse(NamedTuple):
    """What counts against a limit, and the limit, in bytes."""

    used: int
    limit: int


def memory_use(root: Path = Path("/")) -> MemoryUse | None:
    """Return the use of the limit that is nearest to its end, None where there is no limit.

    Looked at are the limits of the control group (version 1 or 2) and of those around it, which are shared with
    whatever else is in them, and the process's own on its data (``training.memory_limit``). What the kernel could
    take back at once, files that were read once, does not count as used.
    """
    found = [*_of_groups(root), *_of_process(root)]
    return max(found, key=lambda use: use.used / use.limit, default=None)


def _of_groups(root: Path) -> Iterator[MemoryUse]:
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top = root / "sys/fs/cgroup"
            names = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = top / path.lstrip("/")
        if not group.is_dir():
            group = top  # within a container the path may be the host's
        while True:
            use = _of_group(group, *names)
            if use is not None:
                yield use
            if group == top:
                break
            group = group.parent


def _of_group(group: Path, limit_name: str, used_name: str, cache_name: str) -> MemoryUse | None:
    limit, used = _number(group / limit_name), _number(group / used_name)
    if limit is None or used is None or not 0 < limit < _UNLIMITED:
        return None
    cache = dict(line.split(" ", 1) for line in _lines(group / "memory.stat")).get(cache_name, "0")
    return MemoryUse(max(0, used - int(cache)), limit)


def _of_process(root: Path) -> Iterator[MemoryUse]:
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return
    for line in _lines(root / "proc/self/status"):
        if line.startswith("VmData:"):
            yield MemoryUse(int(line.split()[1]) * 1024, limit)


def _number(path: Path) -> int | None:
    """Return the number in a file, None where there is no file or no number (``max``)."""
    (text,) = _lines(path)[:1] or ("",)
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
