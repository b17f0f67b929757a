"""The registry: versions that never change, a pointer that is always whole, and clear words when the store fails."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import uuid
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from models.detector import Model
from models.persistence import model_to_parts
from models.training import TrainingConfig, train
from srr_stream.errors import ModelRefused, RegistryError
from srr_stream.registry import FORMAT_VERSION, Manifest, Pointer, Registry
from srr_stream.registry.files import open_files

WEIGHTS = b"not yet a model"


def manifest(**changes: Any) -> Manifest:
    """Return a manifest as a trainer makes it, before the registry adds number, sizes and checksums."""
    made = Manifest(
        version=0,
        created_at="2026-01-01T00:00:00+00:00",
        reason="first model",
        schema={},
        schema_digest="abc",
        window={"ranges": [["requests", 0, 0, 100]], "n_records": 100, "n_bad": 0},
        training={"seed": 0},
        gate={},
        model={},
        canary={},
    )
    return replace(made, **changes)


@pytest.fixture(params=["a folder", "an object store"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "registry") if request.param == "a folder" else f"memory://{uuid.uuid4().hex}/registry"


@pytest.fixture
def registry(url: str) -> Registry:
    return Registry(url)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a registry on the local disk."""
    return tmp_path / "registry"


@pytest.fixture(scope="module")
def model() -> Model:
    rng = np.random.default_rng(0)
    columns = {"a": rng.normal(size=200), "b": rng.normal(size=200)}
    return train(columns, TrainingConfig(representation="identity"), seed=0).model


# Publishing and loading


def test_an_empty_registry_has_no_versions_and_names_none(registry: Registry) -> None:
    assert registry.versions() == ()
    assert registry.pointer() == Pointer(None, None, None)
    assert registry.take_request() is None


def test_versions_count_from_one_and_are_not_in_use_before_they_are_promoted(registry: Registry) -> None:
    assert [registry.publish(manifest(), WEIGHTS).version for _ in range(3)] == [1, 2, 3]
    assert registry.versions() == (1, 2, 3)
    assert registry.pointer() == Pointer()


def test_versions_are_ordered_as_numbers_not_as_text(registry: Registry) -> None:
    for _ in range(11):
        registry.publish(manifest(), b"")
    assert registry.versions() == tuple(range(1, 12))


def test_a_manifest_reads_back_as_it_was_published(registry: Registry, url: str) -> None:
    published = registry.publish(manifest(reason="drift: flagged rate"), WEIGHTS)
    assert published.files["model.safetensors"]["size"] == len(WEIGHTS)
    assert Registry(url).manifest(1) == published


def test_a_model_that_is_loaded_scores_bit_for_bit_as_the_one_published(registry: Registry, model: Model) -> None:
    description, weights = model_to_parts(model)
    published = registry.publish(manifest(model=description), weights)
    loaded, loaded_manifest = registry.load(1)
    assert loaded_manifest == published
    rows = model.canary()
    assert np.array_equal(loaded.score(rows).score, model.score(rows).score)


def test_a_version_that_is_not_there_is_named_with_those_that_are(registry: Registry) -> None:
    registry.publish(manifest(), WEIGHTS)
    with pytest.raises(RegistryError, match=r"there is no version 7; there are \(1,\)"):
        registry.manifest(7)


def test_a_version_without_a_manifest_does_not_exist(folder: Path) -> None:
    registry = Registry(str(folder))
    (folder / "versions" / "1").mkdir(parents=True)
    (folder / "versions" / "1" / "model.safetensors").write_bytes(WEIGHTS)
    assert registry.versions() == ()
    assert registry.publish(manifest(), WEIGHTS).version == 2, "another publisher may be about to finish version 1"


def test_what_is_no_version_among_the_versions_is_left_alone(folder: Path) -> None:
    registry = Registry(str(folder))
    stray = folder / "versions" / "notes"
    stray.mkdir(parents=True)
    (stray / "manifest.json").write_text("{}")
    registry.publish(manifest(), WEIGHTS)
    assert registry.versions() == (1,)


# What must not be used


def refused_on_load(registry: Registry, version: int = 1) -> ModelRefused:
    with pytest.raises(ModelRefused) as refused:
        registry.load(version)
    assert "\n" not in str(refused.value)
    return refused.value


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b[:-1] + bytes([b[-1] ^ 1]),
        lambda b: b + b"x",
    ],
    ids=["one byte short", "half", "empty", "one bit", "one byte more"],
)
def test_weights_that_are_torn_or_altered_are_refused(folder: Path, model: Model, damage: Any) -> None:
    registry = Registry(str(folder))
    description, weights = model_to_parts(model)
    registry.publish(manifest(model=description), weights)
    (folder / "versions" / "1" / "model.safetensors").write_bytes(damage(weights))
    refused = refused_on_load(registry)
    assert refused.reason == "hash"
    assert "altered or torn" in str(refused)


def test_weights_that_are_missing_are_refused(folder: Path) -> None:
    registry = Registry(str(folder))
    registry.publish(manifest(), WEIGHTS)
    (folder / "versions" / "1" / "model.safetensors").unlink()
    assert refused_on_load(registry).reason == "hash"


def test_weights_that_are_no_model_are_refused(registry: Registry) -> None:
    registry.publish(manifest(), WEIGHTS)
    assert refused_on_load(registry).reason == "format"


def test_a_manifest_of_another_format_is_refused_with_both_formats(registry: Registry) -> None:
    registry.publish(manifest(format_version=FORMAT_VERSION + 1), WEIGHTS)
    refused = refused_on_load(registry)
    assert refused.reason == "format"
    assert f"has format {FORMAT_VERSION + 1}, this program reads {FORMAT_VERSION}" in str(refused)


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"files": []},
        {"canary": None},
        {"window": "all"},
        {"version": 2},
        {"version": "1"},
        {"format_version": None},
    ],
    ids=str,
)
def test_a_manifest_that_does_not_fit_is_refused(folder: Path, change: dict[str, Any]) -> None:
    registry = Registry(str(folder))
    content = asdict(registry.publish(manifest(), WEIGHTS)) | change
    (folder / "versions" / "1" / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ModelRefused) as refused:
        registry.manifest(1)
    assert refused.value.reason == "format"


def test_a_manifest_that_lacks_a_key_is_refused(folder: Path) -> None:
    registry = Registry(str(folder))
    content = asdict(registry.publish(manifest(), WEIGHTS))
    del content["schema_digest"]
    (folder / "versions" / "1" / "manifest.json").write_text(json.dumps(content))
    refused = refused_on_load(registry)
    assert refused.reason == "format"
    assert "schema_digest" in str(refused)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_a_manifest_that_is_no_json_object_is_refused(folder: Path, content: str) -> None:
    registry = Registry(str(folder))
    registry.publish(manifest(), WEIGHTS)
    (folder / "versions" / "1" / "manifest.json").write_text(content)
    assert refused_on_load(registry).reason == "format"


def test_a_number_that_json_does_not_know_is_never_written(registry: Registry) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        registry.publish(manifest(training={"loss": float("nan")}), WEIGHTS)
    assert registry.versions() == ()


# Champion and previous


def test_promoting_makes_the_old_champion_the_previous_one(registry: Registry) -> None:
    for _ in range(2):
        registry.publish(manifest(), WEIGHTS)
    assert registry.promote(1) == Pointer(champion=1)
    assert registry.promote(2) == Pointer(champion=2, previous=1)
    assert registry.pointer() == Pointer(champion=2, previous=1)


def test_promoting_the_champion_again_does_not_lose_the_previous_one(registry: Registry) -> None:
    for version in (1, 2):
        registry.publish(manifest(), WEIGHTS)
        registry.promote(version)
    assert registry.promote(2) == Pointer(champion=2, previous=1)


def test_rolling_back_makes_the_previous_version_the_champion(registry: Registry) -> None:
    for version in (1, 2):
        registry.publish(manifest(), WEIGHTS)
        registry.promote(version)
    assert registry.rollback() == Pointer(champion=1, previous=2)
    assert registry.pointer().rolled_back == 2


def test_a_rollback_does_not_return_to_what_was_rolled_back(registry: Registry) -> None:
    for version in (1, 2):
        registry.publish(manifest(), WEIGHTS)
        registry.promote(version)
    registry.rollback(reason="flags too much")
    with pytest.raises(
        RegistryError, match=r"version 2 was rolled back itself \(flags too much\); .*promote 2 brings it"
    ):
        registry.rollback()
    assert registry.pointer() == Pointer(champion=1, previous=2)


def test_a_rollback_of_a_version_that_somebody_has_replaced_changes_nothing(registry: Registry) -> None:
    for version in (1, 2, 3):
        registry.publish(manifest(), WEIGHTS)
        registry.promote(version)
    with pytest.raises(RegistryError, match="version 2 is not rolled back: version 3 took its place"):
        registry.rollback(version=2)
    assert registry.pointer() == Pointer(champion=3, previous=2)


def test_promoting_the_champion_again_does_not_make_a_rolled_back_version_good(registry: Registry) -> None:
    for version in (1, 2):
        registry.publish(manifest(), WEIGHTS)
        registry.promote(version)
    registry.rollback()
    registry.promote(1)
    with pytest.raises(RegistryError, match="rolled back itself"):
        registry.rollback()


def test_a_person_can_promote_what_was_rolled_back(registry: Registry) -> None:
    for version in (1, 2):
        registry.publish(manifest(), WEIGHTS)
        registry.promote(version)
    registry.rollback()
    assert registry.promote(2) == Pointer(champion=2, previous=1)
    assert registry.rollback() == Pointer(champion=1, previous=2)


def test_the_pointer_says_why_and_since_when(url: str) -> None:
    registry = Registry(url, clock=lambda: 1_767_225_600.25)
    for version in (1, 2):
        registry.publish(manifest(), WEIGHTS)
        registry.promote(version, reason=f"reason {version}")
    pointer = registry.pointer()
    assert (pointer.reason, pointer.at) == ("reason 2", "2026-01-01T00:00:00.250+00:00")
    registry.rollback(reason="more dead letters than before")
    assert Registry(url).pointer().reason == "more dead letters than before"


def test_a_pointer_of_an_older_program_is_read(folder: Path) -> None:
    folder.mkdir()
    (folder / "current.json").write_text('{"champion": 3, "previous": 1, "challenger": null}')
    pointer = Registry(str(folder)).pointer()
    assert pointer == Pointer(champion=3, previous=1)
    assert (pointer.reason, pointer.at, pointer.rolled_back) == (None, None, None)


# The challenger


def test_a_proposed_version_is_the_challenger_and_the_champion_stays_with_its_reason(registry: Registry) -> None:
    for _ in range(2):
        registry.publish(manifest(), WEIGHTS)
    registry.promote(1, reason="first")
    assert registry.propose(2) == Pointer(champion=1, challenger=2)
    assert registry.pointer() == Pointer(champion=1, challenger=2)
    assert registry.pointer().reason == "first"


def test_a_challenger_stays_when_another_version_is_promoted_or_rolled_back(registry: Registry) -> None:
    for _ in range(3):
        registry.publish(manifest(), WEIGHTS)
    registry.promote(1)
    registry.propose(3)
    assert registry.promote(2) == Pointer(champion=2, previous=1, challenger=3)
    assert registry.rollback() == Pointer(champion=1, previous=2, challenger=3)


def test_a_challenger_that_is_promoted_is_none_any_more(registry: Registry) -> None:
    for _ in range(2):
        registry.publish(manifest(), WEIGHTS)
    registry.promote(1)
    registry.propose(2)
    assert registry.promote(2) == Pointer(champion=2, previous=1)


def test_a_challenger_can_be_withdrawn(registry: Registry) -> None:
    registry.publish(manifest(), WEIGHTS)
    registry.propose(1)
    assert registry.withdraw() == Pointer()


def test_the_champion_cannot_be_proposed(registry: Registry) -> None:
    registry.publish(manifest(), WEIGHTS)
    registry.promote(1)
    with pytest.raises(RegistryError, match="version 1 cannot be proposed: it is the champion"):
        registry.propose(1)


def test_a_challenger_is_not_pruned(url: str) -> None:
    registry = Registry(url, keep=2)
    for _ in range(4):
        registry.publish(manifest(), WEIGHTS)
    registry.propose(1)
    assert registry.prune() == (2,)


def test_there_is_no_rolling_back_without_a_previous_version(registry: Registry) -> None:
    registry.publish(manifest(), WEIGHTS)
    registry.promote(1)
    with pytest.raises(RegistryError, match="there is no previous version to roll back to"):
        registry.rollback()
    assert registry.pointer() == Pointer(champion=1)


def test_a_version_that_is_not_there_is_not_promoted(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="there is no version 1"):
        registry.promote(1)
    assert registry.pointer() == Pointer()


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"champion": "1"}', '{"champion": true}', '{"champion": 1.5}', '{"winner": 1}']
)
def test_a_pointer_that_does_not_fit_says_how_to_repair_it(folder: Path, content: str) -> None:
    folder.mkdir()
    (folder / "current.json").write_text(content)
    with pytest.raises(
        RegistryError, match=r"current\.json .*; srr-stream models promote N, or rollback, writes it anew"
    ):
        Registry(str(folder)).pointer()


# Pruning


def test_pruning_keeps_the_newest_and_those_in_use(url: str) -> None:
    registry = Registry(url, keep=2)
    for version in range(1, 7):
        registry.publish(manifest(), WEIGHTS)
        if version in (1, 3):
            registry.promote(version)
    assert registry.prune() == (2, 4)
    assert registry.versions() == (1, 3, 5, 6)
    assert registry.pointer() == Pointer(champion=3, previous=1)
    assert registry.prune() == ()


def test_a_pinned_version_is_not_pruned(url: str) -> None:
    registry = Registry(url, keep=2, pinned=(1,))
    for _ in range(4):
        registry.publish(manifest(), WEIGHTS)
    assert registry.prune() == (2,)


def test_pruning_leaves_nothing_of_a_version_on_the_disk(folder: Path) -> None:
    registry = Registry(str(folder), keep=2)
    for _ in range(3):
        registry.publish(manifest(), WEIGHTS)
    registry.prune()
    assert sorted(path.name for path in (folder / "versions").iterdir()) == ["2", "3"]


def test_a_number_is_not_given_out_again_after_pruning(url: str) -> None:
    registry = Registry(url, keep=2)
    for _ in range(5):
        registry.publish(manifest(), WEIGHTS)
    registry.prune()
    assert registry.publish(manifest(), WEIGHTS).version == 6


class RegistryStory(RuleBasedStateMachine):
    """Any story of publishing, promoting, rolling back and pruning, told beside with a list and two numbers."""

    KEEP = 2

    def __init__(self) -> None:
        super().__init__()
        self.url = f"memory://{uuid.uuid4().hex}"
        self.registry = Registry(self.url, keep=self.KEEP)
        self.there: list[int] = []
        self.n_published = 0
        self.champion: int | None = None
        self.previous: int | None = None
        self.rolled_back: int | None = None

    @rule()
    def publish(self) -> None:
        self.n_published += 1
        assert self.registry.publish(manifest(), WEIGHTS).version == self.n_published
        self.there.append(self.n_published)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(self.there))
        self.registry.promote(version)
        if version != self.champion:
            self.champion, self.previous, self.rolled_back = version, self.champion, None

    @rule()
    def roll_back(self) -> None:
        if self.previous is None or self.previous == self.rolled_back:
            with pytest.raises(RegistryError):
                self.registry.rollback()
        else:
            self.registry.rollback()
            self.champion, self.previous, self.rolled_back = self.previous, self.champion, self.champion

    @rule()
    def prune(self) -> None:
        gone = [v for v in self.there[: -self.KEEP] if v not in (self.champion, self.previous)]
        assert self.registry.prune() == tuple(gone)
        self.there = [v for v in self.there if v not in gone]

    @invariant()
    def another_reader_sees_the_same(self) -> None:
        reader = Registry(self.url)
        assert reader.versions() == tuple(self.there)
        assert reader.pointer() == Pointer(self.champion, self.previous)

    @invariant()
    def what_is_in_use_is_there(self) -> None:
        assert {self.champion, self.previous} - {None} <= set(self.there)


RegistryStory.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestRegistryStory = RegistryStory.TestCase


# At once


def test_publishers_in_many_threads_never_share_a_number(folder: Path) -> None:
    numbers: list[int] = []
    start = threading.Barrier(8)

    def publish() -> None:
        registry = Registry(str(folder))
        start.wait()
        for _ in range(5):
            numbers.append(registry.publish(manifest(), WEIGHTS).version)  # noqa: PERF401  # as they come

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 41))
    assert Registry(str(folder)).versions() == tuple(range(1, 41))


def test_publishers_in_four_processes_never_share_a_number(folder: Path) -> None:
    program = (
        "import sys; from srr_stream.registry import Manifest, Registry\n"
        "made = Manifest(0, '', '', {}, '', {}, {}, {}, {}, {})\n"
        "sys.stdin.readline()\n"
        "for _ in range(10): print(Registry(sys.argv[1]).publish(made, b'x').version)\n"
    )
    command = [sys.executable, "-c", program, str(folder)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert sorted(int(line) for output in outputs for line in output.split()) == list(range(1, 41))
    registry = Registry(str(folder))
    assert registry.versions() == tuple(range(1, 41))
    for version in registry.versions():
        registry.promote(version)  # which looks at every byte


def test_of_promotions_at_once_each_leaves_the_one_before_it_as_the_previous_one(folder: Path) -> None:
    for _ in range(8):
        Registry(str(folder)).publish(manifest(), WEIGHTS)
    seen: list[tuple[int | None, int | None]] = []
    start = threading.Barrier(8)

    def promote(version: int) -> None:
        start.wait()
        pointer = Registry(str(folder)).promote(version)
        seen.append((pointer.previous, pointer.champion))

    threads = [threading.Thread(target=promote, args=(version,)) for version in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    came_after = dict(seen)
    chain = [came_after.pop(None)]
    while chain[-1] in came_after:
        chain.append(came_after.pop(chain[-1]))
    assert sorted(version for version in chain if version) == list(range(1, 9))
    assert Registry(str(folder)).pointer().champion == chain[-1]


def test_a_reader_never_sees_a_part_of_a_pointer_or_of_a_manifest(folder: Path) -> None:
    registry, n_promotions = Registry(str(folder)), 60
    registry.publish(manifest(training={"much": "x" * 20_000}), WEIGHTS)
    registry.publish(manifest(training={"much": "y" * 20_000}), WEIGHTS)
    registry.promote(1)
    is_done = threading.Event()
    seen: list[Pointer] = []
    failures: list[Exception] = []

    def read() -> None:
        try:
            while not is_done.is_set():
                pointer = Registry(str(folder)).pointer()
                seen.append(pointer)
                registry.manifest(pointer.champion or 0)
        except RegistryError as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(n_promotions):
        registry.promote(1 + (i + 1) % 2)
    is_done.set()
    reader.join()
    assert not failures
    assert seen
    assert set(seen) <= {Pointer(1), Pointer(1, 2), Pointer(2, 1)}


def test_a_write_that_fails_leaves_the_old_pointer_and_no_rubbish(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(str(folder))
    for _ in range(2):
        registry.publish(manifest(), WEIGHTS)
    registry.promote(1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RegistryError, match=r"cannot write current\.json: No space left on device; check"):
            registry.promote(2)
    assert registry.pointer() == Pointer(champion=1)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "current-copy.json", "current.json", "versions"]


# Requests


def test_a_request_is_taken_once(registry: Registry, url: str) -> None:
    registry.request_training("drift: flagged rate")
    assert Registry(url).take_request() == "drift: flagged rate"
    assert Registry(url).take_request() is None


def test_of_several_requests_the_last_one_counts(registry: Registry) -> None:
    registry.request_training("first")
    registry.request_training("second")
    assert registry.take_request() == "second"
    assert registry.take_request() is None


def test_a_request_that_is_damaged_is_one_nevertheless_and_is_gone_then(folder: Path) -> None:
    folder.mkdir()
    (folder / "training-request.json").write_text("{")
    assert "training-request.json is not JSON" in str(Registry(str(folder)).take_request())
    assert Registry(str(folder)).take_request() is None


# A store that fails


@pytest.mark.parametrize("where", ["registry", "registry/versions", "registry/deep/down"])
def test_a_registry_that_cannot_be_written_says_what_where_and_what_to_do(tmp_path: Path, where: str) -> None:
    in_the_way = tmp_path / where.removesuffix("/deep/down")
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.write_text("a file in place of a folder")
    registry = Registry(str(tmp_path / where.removesuffix("/versions")))
    with pytest.raises(RegistryError, match=r"cannot write versions/1: .+; check registry\.url, rights and space"):
        registry.publish(manifest(), WEIGHTS)


def test_the_check_before_a_training_finds_that_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="cannot write probe-"):
        Registry(str(tmp_path / "file" / "registry")).check_writable()


def test_the_check_before_a_training_leaves_nothing_behind(registry: Registry, url: str) -> None:
    registry.check_writable()
    assert open_files(url).list("", is_deep=True) == {}


def test_a_pointer_that_cannot_be_read_is_not_taken_for_an_empty_registry(folder: Path) -> None:
    (folder / "current.json").mkdir(parents=True)
    with pytest.raises(RegistryError, match=r"cannot read current\.json"):
        Registry(str(folder)).pointer()


def test_a_url_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(RegistryError, match=r"registry\.url: 'nosuch://bucket/x' cannot be opened"):
        Registry("nosuch://bucket/x")
