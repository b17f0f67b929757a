"""The registry on a disk that fails, and under processes that are killed, at every step; and files that were damaged.

Run as a program, this file is what is killed: it publishes, promotes and prunes until the step it is told.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.persistence import model_to_parts
from models.training import TrainingConfig, train
from srr_stream.errors import ModelRefused, RegistryError
from srr_stream.registry import FORMAT_VERSION, GRACE_S, Manifest, Pointer, Registry
from srr_stream.registry.files import LocalFiles, is_temporary
from srr_stream.sealed_json import seal, unseal

KEEP = 2
HOUR_S = 3600.0
READS = {"scandir": os, "stat": os, "io_open": io}
WRITES = {"mkdir": os, "open": os, "write": os, "fsync": os, "replace": os}
DELETES = {"unlink": os, "rmdir": os}


class Killed(BaseException):
    """What a process that dies sees: nothing is caught, nothing is cleaned up."""


@contextmanager
def steps(at_step: Callable[[int, str], None]) -> Iterator[None]:
    """Call `at_step` with its number and name before every step on the file system by this thread."""
    me, n_steps, originals = threading.get_ident(), 0, []

    def stepping(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal n_steps
            if threading.get_ident() == me:
                n_steps += 1
                at_step(n_steps, name)
            return original(*arguments, **options)

        return step

    for name, module in (READS | WRITES | DELETES).items():
        attribute = name.removeprefix("io_")
        originals.append((module, attribute, getattr(module, attribute)))
        setattr(module, attribute, stepping(name, getattr(module, attribute)))
    try:
        yield
    finally:
        for module, attribute, original in originals:
            setattr(module, attribute, original)


def publish_promote_prune(folder: Path, manifest: Manifest, weights: bytes) -> None:
    """Do what a trainer does."""
    registry = Registry(str(folder), keep=KEEP)
    published = registry.publish(manifest, weights)
    registry.promote(published.version, reason="the gate lets it")
    registry.prune()


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine under the tests does not fail; that a sync is asked for, and may fail, stays a step."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def trained() -> tuple[Manifest, bytes]:
    rng = np.random.default_rng(0)
    columns = {"a": rng.normal(size=200), "b": rng.normal(size=200)}
    description, weights = model_to_parts(train(columns, TrainingConfig(representation="identity"), seed=0).model)
    return Manifest(0, "2026-01-01T00:00:00+00:00", "test", {}, "abc", {}, {"seed": 0}, {}, description, {}), weights


@pytest.fixture(scope="module")
def used(trained: tuple[Manifest, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with four versions of which 1 and 2 are about to be pruned, and with old leftovers of every kind."""
    folder = tmp_path_factory.mktemp("used") / "registry"
    registry = Registry(str(folder), keep=KEEP)
    for version in range(1, 5):
        registry.publish(*trained)
        registry.promote(version)
    orphan = folder / "versions" / "5"
    orphan.mkdir()
    (orphan / "model.safetensors").write_bytes(b"published by nobody")
    registry.publish(*trained)
    for name in ("probe-" + "0" * 32, ".current.json." + "1" * 32, "versions/6/.manifest.json." + "2" * 32):
        (folder / name).write_bytes(b"half")
    long_ago = time.time() - 10 * HOUR_S
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (long_ago, long_ago))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def check_sound(folder: Path, before: Pointer, trained: tuple[Manifest, bytes]) -> None:
    """Whatever happened: it opens, the pointer is valid, all that can be seen is whole, and all goes on."""
    registry = Registry(str(folder), keep=KEEP)
    versions = registry.versions()
    for version in versions:
        registry.load(version)
    pointer = registry.pointer()
    assert pointer.champion in versions
    assert pointer == before or (pointer.champion, pointer.previous) == (7, before.champion)
    published = registry.publish(*trained).version
    assert published > max(versions)
    assert registry.promote(published) == Pointer(champion=published, previous=pointer.champion)
    later = Registry(str(folder), keep=KEEP, clock=lambda: time.time() + 2 * HOUR_S)
    later.prune()
    left = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    assert not [name for name in left if is_temporary(name) or "probe" in name]
    assert {int(path.name) for path in (folder / "versions").iterdir()} == set(later.versions())
    assert len(later.versions()) <= KEEP + 1
    assert later.rollback() == Pointer(champion=pointer.champion, previous=published)


# A disk that fails

FAULTS = {
    "full": (errno.ENOSPC, WRITES),
    "read-only": (errno.EROFS, WRITES | DELETES),
    "gone": (errno.ESTALE, READS | WRITES | DELETES),
}


@pytest.mark.parametrize("is_for_good", [True, False], ids=["for good", "for a moment"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_fails_at_any_step_leaves_a_sound_registry(
    used: Path, tmp_path: Path, trained: tuple[Manifest, bytes], fault: str, is_for_good: bool
) -> None:
    code, failing = FAULTS[fault]
    before = Registry(str(used)).pointer()
    errors: list[RegistryError] = []
    for k in range(1, 1000):
        folder = Path(shutil.copytree(used, tmp_path / str(k)))
        n_steps = 0

        def fail(number: int, name: str, k: int = k) -> None:
            nonlocal n_steps
            n_steps = number
            if (number == k or (is_for_good and number > k)) and name in failing:
                raise OSError(code, os.strerror(code))

        try:
            with steps(fail):
                publish_promote_prune(folder, *trained)
        except RegistryError as error:
            errors.append(error)
        check_sound(folder, before, trained)
        shutil.rmtree(folder)
        if n_steps < k:
            break
    assert len(errors) > 30
    assert all(f"{tmp_path}/" in str(error) and os.strerror(code) in str(error) for error in errors)


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_publisher_that_cannot_finish_leaves_no_weights_behind(
    used: Path, folder: Path, trained: tuple[Manifest, bytes], fault: str
) -> None:
    shutil.copytree(used, folder)
    code, _ = FAULTS[fault]

    def fail_at_the_manifest(number: int, name: str) -> None:
        if name == "replace" and (folder / "versions" / "7" / "model.safetensors").exists():
            raise OSError(code, os.strerror(code))

    with steps(fail_at_the_manifest), pytest.raises(RegistryError, match=r"cannot write versions/7/manifest\.json"):
        Registry(str(folder)).publish(*trained)
    assert list((folder / "versions" / "7").iterdir()) == []


# Processes that are killed


def test_a_publisher_that_dies_at_any_step_leaves_a_sound_registry(
    used: Path, tmp_path: Path, trained: tuple[Manifest, bytes]
) -> None:
    before = Registry(str(used)).pointer()
    n_died = 0
    for k in range(1, 1000):
        folder = Path(shutil.copytree(used, tmp_path / str(k)))

        def die(number: int, name: str, k: int = k) -> None:
            if number >= k:
                raise Killed

        try:
            with steps(die):
                publish_promote_prune(folder, *trained)
        except Killed:
            n_died += 1
            check_sound(folder, before, trained)
            shutil.rmtree(folder)
        else:
            break
    assert n_died > 60


def test_a_process_killed_between_any_two_steps_leaves_a_sound_registry(
    used: Path, tmp_path: Path, trained: tuple[Manifest, bytes]
) -> None:
    before = Registry(str(used)).pointer()
    n_killed = 0
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as publisher:
        assert publisher.stdin is not None
        assert publisher.stdout is not None
        for k in range(1, 1000):
            folder = Path(shutil.copytree(used, tmp_path / str(k)))
            publisher.stdin.write(f"{k} {folder}\n")
            publisher.stdin.flush()
            ended_by = int(publisher.stdout.readline())
            check_sound(folder, before, trained)
            shutil.rmtree(folder)
            if ended_by == 0:
                break
            assert ended_by == signal.SIGKILL
            n_killed += 1
        publisher.stdin.close()
        assert publisher.wait(30) == 0
    assert n_killed > 60


def test_a_lock_that_is_held_too_long_is_named(folder: Path) -> None:
    files = LocalFiles(folder, lock_patience_s=0.05)
    with (
        files.locked(),
        pytest.raises(TimeoutError, match=r"another process has held \.lock for 0\.05 s"),
        files.locked(),
    ):
        pass


def test_a_lock_is_waited_for(folder: Path) -> None:
    files = LocalFiles(folder)
    folder.mkdir()
    holder = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    is_in = threading.Event()

    def enter() -> None:
        with files.locked():
            is_in.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not is_in.wait(0.1)
    os.close(holder)
    assert is_in.wait(10)
    thread.join()


# Orphans


def orphan(folder: Path, version: int) -> Path:
    made = folder / "versions" / str(version)
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"weights")
    return made


def at(seconds_from_now: float) -> Callable[[], float]:
    return lambda: time.time() + seconds_from_now


def test_what_another_publisher_is_writing_is_not_pruned(folder: Path, trained: tuple[Manifest, bytes]) -> None:
    young = orphan(folder, 1)
    Registry(str(folder)).publish(*trained)
    Registry(str(folder), clock=at(GRACE_S - 60)).prune()
    assert (young / "model.safetensors").exists()


def test_what_a_crashed_publisher_left_is_pruned_after_the_grace(folder: Path, trained: tuple[Manifest, bytes]) -> None:
    old = orphan(folder, 1)
    Registry(str(folder)).publish(*trained)
    removed: list[str] = []
    gone = Registry(str(folder), clock=at(GRACE_S + 60)).prune(on_removal=removed.append)
    assert not old.exists()
    assert (gone, removed) == ((), ["versions/1"])


def test_a_dry_run_tells_the_same_and_deletes_nothing(used: Path, folder: Path) -> None:
    shutil.copytree(used, folder)
    before = sorted(folder.rglob("*"))
    registry, told, removed = Registry(str(folder), keep=KEEP, clock=at(2 * HOUR_S)), [], []
    would_go = registry.prune(is_dry_run=True, on_removal=told.append)
    assert sorted(folder.rglob("*")) == before
    assert registry.prune(on_removal=removed.append) == would_go == (1, 2)
    assert told == removed
    assert len(told) == 6


def test_the_number_of_the_newest_orphan_is_not_given_out_again(folder: Path, trained: tuple[Manifest, bytes]) -> None:
    Registry(str(folder)).publish(*trained)
    newest = orphan(folder, 2)
    Registry(str(folder), clock=at(2 * HOUR_S)).prune()
    assert list(newest.iterdir()) == []
    assert Registry(str(folder)).publish(*trained).version == 3


def test_a_file_of_somebody_else_is_not_pruned(folder: Path, trained: tuple[Manifest, bytes]) -> None:
    Registry(str(folder)).publish(*trained)
    strange = [folder / "notes.txt", folder / "versions" / "README", folder / "versions" / "007" / "x"]
    for path in strange:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    Registry(str(folder), clock=at(2 * HOUR_S)).prune()
    assert all(path.exists() for path in strange)


def test_nothing_is_pruned_while_it_is_unknown_what_is_in_use(used: Path, folder: Path) -> None:
    shutil.copytree(used, folder)
    (folder / "current.json").write_text("{")
    with pytest.raises(RegistryError, match=r"current\.json is not JSON"):
        Registry(str(folder), keep=KEEP).prune()
    assert Registry(str(folder)).versions() == (1, 2, 3, 4, 6)


def test_a_folder_that_is_written_to_again_is_left_alone(folder: Path) -> None:
    files = LocalFiles(folder)
    assert files.claim("versions/1")
    files.write("versions/1/model.safetensors", b"weights")
    files.delete("versions/1/")
    assert files.read("versions/1/model.safetensors") == b"weights"


def test_what_is_gone_already_is_deleted_without_a_word(folder: Path) -> None:
    files = LocalFiles(folder)
    files.delete("versions/1/")
    files.delete("versions/1/manifest.json")
    assert files.modified("versions/1/manifest.json") is None


def test_a_file_that_vanishes_while_it_is_listed_hides_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = LocalFiles(folder)
    files.write("a", b"stays")
    files.write("b", b"goes")
    scandir = os.scandir

    @contextmanager
    def with_one_that_is_gone(path: Path) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(path) as scan:
            entries = [*scan]
        (folder / "b").unlink()
        yield entries

    monkeypatch.setattr(os, "scandir", with_one_that_is_gone)
    assert files.list("", is_deep=True) == {"a": 5}


# Torn and altered files


def damages(raw: bytes) -> Iterator[bytes]:
    """Yield the content cut at several lengths, and with one bit flipped at many places."""
    n = len(raw)
    yield from (raw[:length] for length in sorted({0, 1, n // 4, n // 2, 3 * n // 4, n - 2, n - 1}))
    places = random.Random(0)
    for _ in range(150):
        place = places.randrange(n)
        yield raw[:place] + bytes([raw[place] ^ (1 << places.randrange(8))]) + raw[place + 1 :]


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_version_that_is_torn_or_altered_is_refused_or_the_same(
    folder: Path, trained: tuple[Manifest, bytes], name: str
) -> None:
    registry = Registry(str(folder))
    published = registry.publish(*trained)
    path = folder / "versions" / "1" / name
    reasons = []
    for damaged in damages(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            assert registry.load(1)[1] == published  # blanks that became other blanks
        except ModelRefused as refused:
            reasons.append(refused.reason)
        assert registry.versions() == (1,)
    assert len(reasons) > 100
    assert set(reasons) <= {"hash", "format"}


def test_an_altered_figure_in_a_manifest_is_noticed(folder: Path, trained: tuple[Manifest, bytes]) -> None:
    registry = Registry(str(folder))
    registry.publish(*trained)
    path = folder / "versions" / "1" / "manifest.json"
    altered, n_altered = re.subn(rb'("tail_share": )0\.5', rb"\g<1>0.7", path.read_bytes())
    assert n_altered == 1
    path.write_bytes(altered)
    with pytest.raises(ModelRefused, match=r"version 1: manifest\.json is altered") as refused:
        registry.load(1)
    assert refused.value.reason == "hash"


def test_a_pointer_that_is_torn_or_altered_is_an_error_or_the_same(
    folder: Path, trained: tuple[Manifest, bytes]
) -> None:
    registry = Registry(str(folder))
    for version in (1, 2):
        registry.publish(*trained)
        registry.promote(version)
    path = folder / "current.json"
    n_errors = 0
    for damaged in damages(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            assert registry.pointer() == Pointer(champion=2, previous=1)
        except RegistryError:
            n_errors += 1
    assert n_errors > 100


@pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b'{"champion": 2'], ids=str)
def test_a_damaged_or_lost_pointer_is_repaired_by_a_promotion_and_forgets_nothing(
    folder: Path, trained: tuple[Manifest, bytes], damage: bytes | None
) -> None:
    registry = Registry(str(folder))
    for version in (1, 2, 3):
        registry.publish(*trained)
        registry.promote(version)
    _damage(folder / "current.json", damage)
    assert registry.promote(2) == Pointer(champion=2, previous=3)
    assert registry.pointer() == Pointer(champion=2, previous=3)


@pytest.mark.parametrize("damage", [None, b"", b"{"], ids=str)
def test_a_damaged_or_lost_pointer_is_repaired_by_a_rollback(
    folder: Path, trained: tuple[Manifest, bytes], damage: bytes | None
) -> None:
    registry = Registry(str(folder))
    for version in (1, 2):
        registry.publish(*trained)
        registry.promote(version)
    _damage(folder / "current.json", damage)
    assert registry.rollback() == Pointer(champion=1, previous=2)
    assert registry.pointer() == Pointer(champion=1, previous=2)


def test_a_pointer_whose_copy_is_damaged_too_is_repaired_by_a_promotion(
    folder: Path, trained: tuple[Manifest, bytes]
) -> None:
    registry = Registry(str(folder))
    registry.publish(*trained)
    registry.promote(1)
    for name in ("current.json", "current-copy.json"):
        (folder / name).write_bytes(b"{")
    with pytest.raises(RegistryError, match="there is no previous version to roll back to"):
        registry.rollback()
    assert registry.promote(1) == Pointer(champion=1)
    assert registry.pointer() == Pointer(champion=1)


@pytest.mark.parametrize("file", ["manifest.json", "model.safetensors"])
@pytest.mark.parametrize("damage", [None, b"", b"{}"], ids=str)
@pytest.mark.parametrize("change", ["promote", "propose", "rollback"])
def test_a_version_that_is_not_whole_does_not_come_into_use(
    folder: Path, trained: tuple[Manifest, bytes], file: str, damage: bytes | None, change: str
) -> None:
    registry = Registry(str(folder))
    for version in (1, 2):
        registry.publish(*trained)
        registry.promote(version)
    _damage(folder / "versions" / "1" / file, damage)
    with pytest.raises(RegistryError):
        registry.rollback() if change == "rollback" else getattr(registry, change)(1)
    assert registry.pointer() == Pointer(champion=2, previous=1)


def test_a_pointer_to_a_version_that_is_gone_can_be_read_and_be_led_back(
    folder: Path, trained: tuple[Manifest, bytes]
) -> None:
    registry = Registry(str(folder))
    for version in (1, 2):
        registry.publish(*trained)
        registry.promote(version)
    shutil.rmtree(folder / "versions" / "2")
    assert registry.pointer() == Pointer(champion=2, previous=1)
    with pytest.raises(RegistryError, match="there is no version 2"):
        registry.load(2)
    assert registry.rollback() == Pointer(champion=1, previous=2)


def _damage(path: Path, content: bytes | None) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)


# Other formats


@pytest.mark.parametrize("format_version", [FORMAT_VERSION - 1, FORMAT_VERSION + 1])
def test_a_version_of_another_format_is_refused_and_stops_nothing(
    folder: Path, trained: tuple[Manifest, bytes], format_version: int
) -> None:
    made, weights = trained
    registry = Registry(str(folder), keep=KEEP)
    registry.publish(replace(made, format_version=format_version), weights)
    (folder / "current.json").write_text(json.dumps({"champion": 1, "previous": None, "challenger": None}))
    with pytest.raises(ModelRefused, match=f"has format {format_version}"):
        registry.load(1)
    assert registry.pointer() == Pointer(champion=1)
    for version in (2, 3, 4):
        assert registry.publish(*trained).version == version
        registry.promote(version)
    assert registry.prune() == (1, 2)
    assert registry.pointer() == Pointer(champion=4, previous=3)


def test_a_manifest_of_a_program_that_wrote_no_digest_is_read(folder: Path, trained: tuple[Manifest, bytes]) -> None:
    registry = Registry(str(folder))
    published = registry.publish(*trained)
    (folder / "versions" / "1" / "manifest.json").write_text(json.dumps(asdict(published)))
    assert registry.load(1)[1] == published


@pytest.mark.parametrize(
    "raw", [b"[" * 100_000, b"\xff", b"1", b'{"digest": 1}'], ids=["deep", "no text", "1", "digest"]
)
def test_what_is_no_sealed_object_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"is not JSON|must be an object|is altered"):
        unseal(raw)


def test_a_sealed_object_reads_back_whatever_its_keys_and_values_are() -> None:
    assert unseal(seal({"b": (1, -0.0, 1e300), "a": {2: None, 10: "é"}})) == {
        "b": [1, -0.0, 1e300],
        "a": {"2": None, "10": "é"},
    }


def _publish_until_killed() -> None:
    """Read a step and a folder a line; do it in a process that is killed at the step; say what ended it."""
    os.fsync = lambda descriptor: None
    for line in sys.stdin:
        k, folder = line.split(maxsplit=1)
        manifest = Registry(folder.strip()).manifest(3)
        weights = Path(folder.strip(), "versions/3/model.safetensors").read_bytes()
        child = os.fork()
        if child == 0:

            def kill(number: int, name: str, k: int = int(k)) -> None:
                if number == k:
                    os.kill(os.getpid(), signal.SIGKILL)

            with suppress(RegistryError), steps(kill):
                publish_promote_prune(Path(folder.strip()), manifest, weights)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)


if __name__ == "__main__":
    _publish_until_killed()
