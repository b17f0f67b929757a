"""The live model: swapped when the pointer names a good one, kept when it names a bad one or nothing at all."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from models.detector import Model
from models.persistence import model_from_parts, model_to_parts
from models.training import TrainingConfig, train
from srr_stream.errors import ModelRefused, RegistryError
from srr_stream.live_model import Live, LiveModel, check_canary, make_canary
from srr_stream.registry import Manifest, Registry

DIGEST = "the schema of the records"


@pytest.fixture(scope="module")
def model() -> Model:
    rng = np.random.default_rng(0)
    a = rng.normal(size=300)
    route = rng.choice(np.array(["/", "/cart"], dtype=object), 300)
    columns = {"a": a, "b": 2 * a + rng.normal(0, 0.1, 300), "route": route}
    return train(columns, TrainingConfig(representation="identity"), seed=0).model


class Bench:
    """A registry on disk with a live model before it, and notes of all that it tells."""

    def __init__(self, folder: Path, model: Model) -> None:
        self.folder = folder
        self.registry = Registry(str(folder))
        self.model = model
        self.swaps: list[Live] = []
        self.refusals: list[tuple[int, str]] = []
        self.rollbacks: list[tuple[int, str]] = []
        self.has_swapped = threading.Semaphore(0)
        self.live_model = LiveModel(
            self.registry,
            schema_digest=DIGEST,
            false_alarm_rate=0.02,
            poll_every_s=0.01,
            on_swap=self._note,
            on_refusal=lambda version, reason: self.refusals.append((version, reason)),
            on_rollback=lambda version, reason: self.rollbacks.append((version, reason)),
        )

    def _note(self, live: Live) -> None:
        self.swaps.append(live)
        self.has_swapped.release()

    def propose(self, **changes: Any) -> int:
        """Publish the model as the challenger, and return its version."""
        version = self._publish(changes)
        self.registry.propose(version)
        return version

    def publish(self, **changes: Any) -> int:
        """Publish the model, promote it, and return its version."""
        version = self._publish(changes)
        self.registry.promote(version)
        return version

    def _publish(self, changes: dict[str, Any]) -> int:
        description, weights = model_to_parts(self.model)
        made = Manifest(
            version=0,
            created_at="2026-01-01T00:00:00+00:00",
            reason="for a test",
            schema={},
            schema_digest=DIGEST,
            window={"n_records": 300},
            training={},
            gate={},
            model=description,
            canary=make_canary(self.model),
        )
        return self.registry.publish(replace(made, **changes), weights).version

    @property
    def live_version(self) -> int | None:
        return self.live_model.current.version if self.live_model.current else None


@pytest.fixture
def bench(tmp_path: Path, model: Model) -> Iterator[Bench]:
    made = Bench(tmp_path / "registry", model)
    yield made
    made.live_model.stop()


# Swapping


def test_before_the_first_model_there_is_none_and_no_problem(bench: Bench) -> None:
    assert not bench.live_model.refresh()
    assert bench.live_model.current is None
    assert bench.live_model.problem is None


def test_a_version_that_is_published_but_not_promoted_is_not_live(bench: Bench) -> None:
    description, weights = model_to_parts(bench.model)
    bench.registry.publish(Manifest(0, "", "", {}, DIGEST, {}, {}, {}, description, make_canary(bench.model)), weights)
    assert not bench.live_model.refresh()


def test_the_champion_becomes_live_once_and_is_told_once(bench: Bench) -> None:
    bench.publish()
    assert bench.live_model.refresh()
    assert not bench.live_model.refresh()
    assert bench.live_version == 1
    assert [live.version for live in bench.swaps] == [1]


def test_the_live_model_scores_as_the_published_one_with_the_false_alarm_rate_of_the_settings(bench: Bench) -> None:
    bench.publish()
    bench.live_model.refresh()
    assert bench.live_model.current is not None
    live, rows = bench.live_model.current.model, bench.model.canary()
    assert np.array_equal(live.score(rows).score, bench.model.score(rows).score)
    assert bench.model.false_alarm_rate == 0.005
    assert live.false_alarm_rate == 0.02


def test_a_rollback_makes_the_older_version_live_again(bench: Bench) -> None:
    for _ in range(2):
        bench.publish()
        bench.live_model.refresh()
    bench.registry.rollback()
    assert bench.live_model.refresh()
    assert [live.version for live in bench.swaps] == [1, 2, 1]


def test_whoever_holds_a_live_model_keeps_it_whole_through_a_swap(bench: Bench) -> None:
    bench.publish()
    bench.live_model.refresh()
    held = bench.live_model.current
    bench.publish()
    bench.live_model.refresh()
    assert held is not None
    assert (held.version, bench.live_version) == (1, 2)
    assert np.isfinite(held.model.score(bench.model.canary()).score).all()


# Refusing


def damaged_canary(bench: Bench, **changes: Any) -> dict[str, Any]:
    return {**make_canary(bench.model), **changes}


def test_a_model_of_another_schema_is_refused_and_the_old_one_stays(bench: Bench) -> None:
    bench.publish()
    bench.live_model.refresh()
    bench.publish(schema_digest="another")
    assert not bench.live_model.refresh()
    assert bench.live_version == 1
    assert bench.refusals == [(2, "schema")]
    assert bench.live_model.problem is not None
    assert bench.live_model.problem.startswith("version 2 refused (schema): it was trained on another schema")


def test_a_model_with_damaged_weights_is_refused_and_the_old_one_stays(bench: Bench) -> None:
    bench.publish()
    bench.live_model.refresh()
    bench.publish()
    path = bench.folder / "versions" / "2" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert not bench.live_model.refresh()
    assert bench.live_version == 1
    assert bench.refusals == [(2, "hash")]


def test_a_model_that_scores_its_canary_differently_is_refused(bench: Bench) -> None:
    scores = make_canary(bench.model)["score"]
    scores[3] += 0.05
    bench.publish(canary=damaged_canary(bench, score=scores))
    assert not bench.live_model.refresh()
    assert bench.refusals == [(1, "canary")]
    assert "scores its canary batch differently, by up to 0.05" in str(bench.live_model.problem)


@pytest.mark.parametrize(
    "changes",
    [
        {"score": [1.0]},
        {"score": []},
        {"score": None},
        {"score": ["high"] * 16},
        {"columns": {}},
        {"columns": []},
        {"columns": {"a": [1.0]}},
        {"categorical": None},
        {"categorical": []},
    ],
    ids=str,
)
def test_a_canary_that_cannot_be_scored_is_refused(bench: Bench, changes: dict[str, Any]) -> None:
    with pytest.raises(ModelRefused) as refused:
        check_canary(bench.model, damaged_canary(bench, **changes))
    assert refused.value.reason == "canary"


def test_a_canary_without_rows_checks_nothing_and_is_refused(bench: Bench) -> None:
    canary = make_canary(bench.model)
    empty = canary | {"score": [], "columns": {name: [] for name in canary["columns"]}}
    with pytest.raises(ModelRefused, match="0 rows"):
        check_canary(bench.model, empty)


def test_a_canary_survives_the_way_through_json(bench: Bench) -> None:
    check_canary(bench.model, json.loads(json.dumps(make_canary(bench.model), allow_nan=False)))


@pytest.fixture(scope="module")
def model_of_pictures() -> Model:
    pictures = np.random.default_rng(0).integers(0, 256, size=(200, 20, 24, 3), dtype=np.uint8)
    config = TrainingConfig(
        representation="cutpaste", representation_options={"width": 8, "n_epochs": 1, "head_width": 8}, classifier="gde"
    )
    return train({"photo": pictures}, config, seed=0, device="cpu").model


def test_a_canary_of_pictures_is_small_and_survives_the_way_through_json(model_of_pictures: Model) -> None:
    canary = json.dumps(make_canary(model_of_pictures), allow_nan=False)
    assert len(canary) < 20_000
    check_canary(model_of_pictures, json.loads(canary))
    check_canary(model_of_pictures.on("cpu", n_threads=1), json.loads(canary))


@pytest.mark.parametrize("change", [{"zlib": "bm90aGluZw=="}, {"shape": [1, 2, 3]}, {"zlib": None}])
def test_a_canary_of_pictures_that_cannot_be_read_is_refused(model_of_pictures: Model, change: dict[str, Any]) -> None:
    canary = make_canary(model_of_pictures)
    canary["columns"]["photo"] |= change
    with pytest.raises(ModelRefused) as refused:
        check_canary(model_of_pictures, canary)
    assert refused.value.reason == "canary"


def test_a_model_of_pictures_with_other_weights_does_not_pass_its_canary(model_of_pictures: Model) -> None:
    canary = make_canary(model_of_pictures)
    description, weights = model_to_parts(model_of_pictures)
    arrays = safetensors.numpy.load(weights)
    name = "representation.encoder.layer2.0.conv1.weight"
    arrays[name] = arrays[name] * np.float32(1.5)
    other = model_from_parts(description, safetensors.numpy.save(arrays))
    with pytest.raises(ModelRefused, match="scores its canary batch differently"):
        check_canary(other, canary)


def test_a_refused_version_is_counted_and_logged_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.publish(schema_digest="another")
    with caplog.at_level(logging.WARNING, logger="srr_stream.live_model"):
        for _ in range(3):
            assert not bench.live_model.refresh()
    assert bench.refusals == [(1, "schema")]
    assert len(caplog.records) == 1


def test_after_a_refused_version_a_good_one_becomes_live_and_the_problem_is_gone(bench: Bench) -> None:
    bench.publish(schema_digest="another")
    bench.live_model.refresh()
    bench.publish()
    assert bench.live_model.refresh()
    assert bench.live_version == 2
    assert bench.live_model.problem is None


def test_after_a_rollback_from_a_refused_version_the_problem_is_gone(bench: Bench) -> None:
    bench.publish()
    bench.live_model.refresh()
    bench.publish(schema_digest="another")
    bench.live_model.refresh()
    bench.registry.rollback()
    assert not bench.live_model.refresh()
    assert bench.live_version == 1
    assert bench.live_model.problem is None


# A registry that fails


def test_a_registry_that_vanishes_keeps_the_model_and_says_so_until_it_is_back(bench: Bench) -> None:
    bench.publish()
    bench.live_model.refresh()
    away = shutil.move(bench.folder, bench.folder.with_name("away"))
    assert not bench.live_model.refresh()
    assert bench.live_version == 1
    assert "names no champion any more" in str(bench.live_model.problem)
    shutil.move(away, bench.folder)
    assert not bench.live_model.refresh()
    assert bench.live_model.problem is None


def test_a_pointer_that_cannot_be_read_keeps_the_model_and_is_logged_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish()
    bench.live_model.refresh()
    (bench.folder / "current.json").write_text("{")
    with caplog.at_level(logging.WARNING, logger="srr_stream.live_model"):
        for _ in range(3):
            assert not bench.live_model.refresh()
    assert len(caplog.records) == 1
    assert bench.live_version == 1
    assert "current.json is not JSON" in str(bench.live_model.problem)
    assert not bench.refusals


def test_a_pointer_to_a_version_that_is_gone_is_a_problem_that_may_pass(bench: Bench) -> None:
    bench.publish()
    hidden = shutil.move(bench.folder / "versions" / "1", bench.folder / "hidden")
    assert not bench.live_model.refresh()
    assert "there is no version 1" in str(bench.live_model.problem)
    assert not bench.refusals
    shutil.move(hidden, bench.folder / "versions" / "1")
    assert bench.live_model.refresh()
    assert bench.live_model.problem is None


# The watcher


def test_the_watcher_swaps_by_itself_until_it_is_stopped(bench: Bench) -> None:
    bench.live_model.start()
    bench.publish()
    assert bench.has_swapped.acquire(timeout=30)
    bench.publish()
    assert bench.has_swapped.acquire(timeout=30)
    assert bench.live_version == 2
    bench.live_model.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "live-model"]
    bench.publish()
    assert bench.live_version == 2


def test_the_watcher_survives_a_broken_registry(bench: Bench) -> None:
    bench.folder.mkdir()
    (bench.folder / "current.json").write_text("[]")
    bench.live_model.start()
    (bench.folder / "current.json").unlink()
    bench.publish()
    assert bench.has_swapped.acquire(timeout=30)


def test_stopping_twice_or_before_the_start_is_fine(bench: Bench) -> None:
    bench.live_model.stop()
    bench.live_model.stop()


def test_the_watcher_survives_what_nobody_foresaw_and_says_it(bench: Bench) -> None:
    failures = iter([RuntimeError("no credentials"), None])
    told = threading.Event()

    def fail_once(live: Live) -> None:
        if (failure := next(failures, None)) is not None:
            told.set()
            raise failure
        bench.has_swapped.release()

    bench.live_model._on_swap = fail_once
    bench.publish()
    bench.live_model.start()
    try:
        assert told.wait(10)
        bench.publish()
        assert bench.has_swapped.acquire(timeout=10)
    finally:
        bench.live_model.stop()
    assert bench.live_model.current is not None
    assert bench.live_model.current.version == 2


# Challenger and rollback


def test_a_waiting_challenger_is_loaded_and_checked_beside_the_live_model(bench: Bench) -> None:
    bench.publish()
    waiting = bench.propose()
    assert bench.live_model.refresh()
    assert bench.live_model.challenger is not None
    assert bench.live_model.challenger.version == waiting
    assert bench.live_model.current is not None
    assert bench.live_model.current.version == 1


def test_a_challenger_that_is_promoted_or_withdrawn_is_one_no_more(bench: Bench) -> None:
    bench.publish()
    bench.propose()
    bench.live_model.refresh()
    bench.registry.promote(2)
    bench.live_model.refresh()
    assert bench.live_model.challenger is None
    bench.propose()
    bench.live_model.refresh()
    bench.registry.withdraw()
    bench.live_model.refresh()
    assert bench.live_model.challenger is None


def test_a_challenger_that_is_refused_is_told_once_and_the_live_model_is_none_the_worse(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish()
    bench.propose(schema_digest="another")
    for _ in range(3):
        bench.live_model.refresh()
    assert bench.live_model.challenger is None
    assert bench.live_model.problem is None
    assert caplog.text.count("challenger 2 refused (schema)") == 1


def test_a_challenger_that_cannot_be_read_now_is_loaded_when_it_can(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.publish()
    bench.live_model.refresh()
    bench.propose()

    def lost(version: int) -> Any:
        raise RegistryError("the store is away")

    with monkeypatch.context() as patched:
        patched.setattr(bench.registry, "load", lost)
        assert not bench.live_model.refresh()
    assert bench.live_model.challenger is None
    assert bench.live_model.problem is None
    bench.live_model.refresh()
    assert bench.live_model.challenger is not None


def test_a_dropped_challenger_is_not_loaded_again(bench: Bench) -> None:
    bench.publish()
    bench.propose()
    bench.live_model.refresh()
    bench.live_model.drop_challenger(2)
    bench.live_model.refresh()
    assert bench.live_model.challenger is None
    assert bench.registry.pointer().challenger == 2


def test_a_challenger_that_came_meanwhile_is_not_dropped_for_the_one_before(bench: Bench) -> None:
    bench.publish()
    bench.propose()
    bench.live_model.refresh()
    bench.propose()
    bench.live_model.refresh()
    bench.live_model.drop_challenger(2)
    bench.live_model.refresh()
    assert bench.live_model.challenger is not None
    assert bench.live_model.challenger.version == 3


def test_a_challenger_whose_loading_dies_of_anything_is_told_once_and_not_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish()
    bench.live_model.refresh()
    bench.propose()

    def out_of_memory(version: int) -> Any:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(bench.registry, "load", out_of_memory)
    for _ in range(3):
        assert not bench.live_model.refresh()
    assert bench.live_model.challenger is None
    assert bench.live_model.problem is None
    assert caplog.text.count("challenger 2 cannot be loaded") == 1


def test_what_was_replaced_is_kept_until_nobody_needs_it(bench: Bench) -> None:
    for _ in range(2):
        bench.publish()
        bench.live_model.refresh()
    assert bench.live_model.previous is not None
    bench.live_model.forget_previous(7)
    assert bench.live_model.previous is not None
    bench.live_model.forget_previous(1)
    assert bench.live_model.previous is None


def test_what_was_replaced_is_not_kept_where_nobody_will_need_it(bench: Bench) -> None:
    live_model = LiveModel(bench.registry, schema_digest=DIGEST, false_alarm_rate=0.02, keeps_previous=False)
    for _ in range(2):
        bench.publish()
        live_model.refresh()
    assert live_model.current is not None
    assert live_model.current.version == 2
    assert live_model.previous is None


@pytest.fixture
def swapped(bench: Bench) -> Bench:
    for _ in range(2):
        bench.publish()
        bench.live_model.refresh()
    return bench


def test_a_rollback_that_is_asked_for_is_done_at_the_next_look_with_its_reason(swapped: Bench) -> None:
    swapped.live_model.roll_back(2, 1, "version 2 flags too much")
    assert swapped.live_model.refresh()
    assert swapped.live_model.current is not None
    assert swapped.live_model.current.version == 1
    pointer = swapped.registry.pointer()
    assert (pointer.champion, pointer.previous) == (1, 2)
    assert pointer.reason == "automatic rollback: version 2 flags too much"
    assert swapped.rollbacks == [(2, "version 2 flags too much")]


def test_of_several_scorers_that_ask_for_the_same_rollback_one_does_it(swapped: Bench, model: Model) -> None:
    other = Bench(swapped.folder, model)
    other.live_model.refresh()
    for each in (swapped, other):
        each.live_model.roll_back(2, 1, "version 2 flags too much")
    for each in (swapped, other, swapped, other):
        each.live_model.refresh()
    assert swapped.registry.pointer().champion == 1
    assert len(swapped.rollbacks) + len(other.rollbacks) == 1


def test_a_rollback_is_not_done_any_more_when_the_pointer_has_moved_on(swapped: Bench) -> None:
    swapped.live_model.roll_back(2, 1, "version 2 flags too much")
    swapped.publish()
    swapped.live_model.refresh()
    assert swapped.registry.pointer().champion == 3
    assert swapped.rollbacks == []


def test_what_a_person_rolled_back_does_not_come_back_because_its_predecessor_flags_more(
    swapped: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    swapped.registry.rollback(reason="blind")
    swapped.live_model.refresh()
    swapped.live_model.roll_back(1, 2, "version 1 flags too much")
    for _ in range(2):
        swapped.live_model.refresh()
    assert swapped.registry.pointer().champion == 1
    assert swapped.live_model.problem is None
    assert swapped.rollbacks == []
    assert caplog.text.count("version 1 flags too much, but is not rolled back") == 1


def test_a_rollback_past_a_version_that_was_never_live_here_is_left_to_a_person(
    swapped: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    swapped.publish(schema_digest="another")
    swapped.live_model.refresh()
    swapped.publish()
    swapped.live_model.refresh()
    swapped.live_model.roll_back(4, 2, "version 4 flags too much")
    swapped.live_model.refresh()
    assert swapped.registry.pointer().champion == 4
    assert "srr-stream models promote 2 does it by hand" in caplog.text


def test_a_rollback_that_the_registry_cannot_write_is_tried_again(
    swapped: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*, reason: str, version: int) -> Any:
        raise RegistryError("no space")

    swapped.live_model.roll_back(2, 1, "version 2 flags too much")
    with monkeypatch.context() as patched:
        patched.setattr(swapped.registry, "rollback", full)
        for _ in range(3):
            assert not swapped.live_model.refresh()
    assert swapped.live_model.problem == "no space"
    assert swapped.live_model.refresh()
    assert swapped.registry.pointer().champion == 1
    assert caplog.text.count("version 2 flags too much") == 1, "done is told, and told once"


def test_a_rollback_to_a_version_that_is_torn_is_given_up(swapped: Bench, caplog: pytest.LogCaptureFixture) -> None:
    (swapped.folder / "versions" / "1" / "model.safetensors").write_bytes(b"torn")
    swapped.live_model.roll_back(2, 1, "version 2 flags too much")
    for _ in range(2):
        swapped.live_model.refresh()
    assert swapped.registry.pointer().champion == 2
    assert caplog.text.count("version 2 cannot be rolled back") == 1


# Another α


def rates(bench: Bench) -> list[float]:
    found = (bench.live_model.current, bench.live_model.previous, bench.live_model.challenger)
    return [live.model.false_alarm_rate for live in found if live is not None]


def test_another_rate_holds_for_all_that_score_and_for_what_is_loaded_later(bench: Bench) -> None:
    bench.publish()
    bench.live_model.refresh()
    bench.publish()
    bench.propose()
    bench.live_model.refresh()
    assert rates(bench) == [0.02, 0.02, 0.02]
    swapped = bench.live_model.current
    bench.live_model.set_false_alarm_rate(0.2)
    assert rates(bench) == [0.2, 0.2, 0.2]
    assert swapped is not None
    assert swapped.model.false_alarm_rate == 0.02, "a batch that has it goes on with it"
    bench.publish()
    bench.live_model.refresh()
    assert bench.live_version == 4
    assert rates(bench)[0] == 0.2
    assert len(bench.swaps) == 3, "it is no swap"


def test_the_same_rate_changes_no_object(bench: Bench) -> None:
    bench.publish()
    bench.live_model.refresh()
    before = bench.live_model.current
    bench.live_model.set_false_alarm_rate(0.02)
    assert bench.live_model.current is before


def test_a_rate_that_changes_while_a_model_is_loaded_holds_for_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.publish()
    bench.propose()
    load = bench.live_model.load

    def load_slowly(version: int) -> Live:
        loaded = load(version)
        bench.live_model.set_false_alarm_rate({1: 0.1, 2: 0.2}[version])
        return loaded

    monkeypatch.setattr(bench.live_model, "load", load_slowly)
    bench.live_model.refresh()
    assert rates(bench) == [0.2, 0.2]


def test_whether_the_replaced_model_is_kept_may_change(bench: Bench) -> None:
    bench.live_model.keeps_previous = False
    for _ in range(2):
        bench.publish()
        bench.live_model.refresh()
    assert bench.live_model.previous is None
    bench.live_model.keeps_previous = True
    bench.publish()
    bench.live_model.refresh()
    assert bench.live_model.previous is not None
    bench.live_model.forget_previous()
    assert bench.live_model.previous is None
