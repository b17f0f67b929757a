"""The limit of memory, as the kernel writes it: control groups of both versions, and a process's own."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from srr_stream import memory
from srr_stream.memory import MemoryUse, memory_use
from srr_stream.metrics import ScorerMetrics

MIB = 1 << 20
WriteRoot = Callable[[Mapping[str, str]], Path]


@pytest.fixture
def write_root(tmp_path: Path) -> WriteRoot:
    """Give what writes files below a root of its own."""

    def write(files: Mapping[str, str]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return write


@pytest.fixture(autouse=True)
def own_limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Give what sets the process's own limit; at first there is none."""

    def limit(n_bytes: int) -> None:
        monkeypatch.setattr(memory.resource, "getrlimit", lambda which: (n_bytes, n_bytes))

    limit(resource.RLIM_INFINITY)
    return limit


def group(version: int, limit: str, used: int, cache: int = 0) -> dict[str, str]:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return {names[0]: f"{limit}\n", names[1]: f"{used}\n", "memory.stat": f"anon 1\n{names[2]} {cache}\nfile 7\n"}


def below(folder: str, files: Mapping[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def test_a_container_without_files_that_could_be_given_back(write_root: WriteRoot) -> None:
    root = write_root(
        {"proc/self/cgroup": "0::/\n", **below("sys/fs/cgroup", group(2, str(100 * MIB), 60 * MIB, 10 * MIB))}
    )
    assert memory_use(root) == MemoryUse(50 * MIB, 100 * MIB)


def test_the_group_nearest_to_its_limit_counts_also_one_further_out(write_root: WriteRoot) -> None:
    root = write_root(
        {
            "proc/self/cgroup": "0::/pods/srr\n",
            **below("sys/fs/cgroup/pods/srr", group(2, str(100 * MIB), 20 * MIB)),
            **below("sys/fs/cgroup/pods", group(2, str(200 * MIB), 190 * MIB)),
        }
    )
    assert memory_use(root) == MemoryUse(190 * MIB, 200 * MIB)


@pytest.mark.parametrize("version", [1, 2])
def test_no_limit_is_none(write_root: WriteRoot, version: int) -> None:
    line, folder, limit = ("0::/", "sys/fs/cgroup", "max")
    if version == 1:
        line, folder, limit = ("7:memory:/", "sys/fs/cgroup/memory", str(0x7FFFFFFFFFFFF000))
    root = write_root({"proc/self/cgroup": f"{line}\n", **below(folder, group(version, limit, MIB))})
    assert memory_use(root) is None


def test_the_first_version_within_a_container_that_sees_the_path_of_the_host(write_root: WriteRoot) -> None:
    root = write_root(
        {
            "proc/self/cgroup": "12:cpu,cpuacct:/docker/1f\n7:memory:/docker/1f\n",
            **below("sys/fs/cgroup/memory", group(1, str(100 * MIB), 90 * MIB, 30 * MIB)),
        }
    )
    assert memory_use(root) == MemoryUse(60 * MIB, 100 * MIB)


def test_the_limit_of_the_process_itself(write_root: WriteRoot, own_limit: Callable[[int], None]) -> None:
    own_limit(4096 * 1024)
    root = write_root({"proc/self/status": "Name:\tsrr\nVmData:\t    1024 kB\nThreads:\t3\n"})
    assert memory_use(root) == MemoryUse(1024 * 1024, 4096 * 1024)


def test_a_system_without_these_files_has_no_limit(tmp_path: Path) -> None:
    assert memory_use(tmp_path) is None


@pytest.mark.parametrize(("use", "shown"), [(MemoryUse(3, 4), (4.0, 3.0)), (None, (None, None))])
def test_the_metrics_are_there_when_there_is_a_limit(
    use: MemoryUse | None, shown: tuple[float | None, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srr_stream.metrics.memory_use", lambda: use)
    registry = CollectorRegistry()
    ScorerMetrics(registry)
    names = ("srr_memory_limit_bytes", "srr_memory_used_bytes")
    assert tuple(registry.get_sample_value(name) for name in names) == shown


def test_this_very_process_is_looked_at_without_an_error() -> None:
    use = memory_use()
    assert use is None or use.used >= 0
