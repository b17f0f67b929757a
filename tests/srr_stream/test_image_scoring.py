"""Pictures through the scorer's turn: each gets a verdict or a dead letter, and none stops the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from consumers.decoding import ImageDecoder
from consumers.delivery import AtLeastOnce
from consumers.logs import MemoryLog
from consumers.records import Field, FieldKind, ImageSpec, RecordSchema, event_id
from consumers.sinks.memory import MemorySink
from consumers.sources.memory import MemorySource
from srr_stream.health import Health
from srr_stream.metrics import ScorerMetrics
from srr_stream.pace import Pace
from srr_stream.scorer import Scorer

SCHEMA = RecordSchema((Field("photo", FieldKind.IMAGE, image=ImageSpec(16, 16)),))


class Brightness:
    """A model that flags what is bright: to see what becomes of a record, nobody needs a trained one."""

    false_alarm_rate = 0.005

    def score(self, columns: Mapping[str, NDArray[Any]]) -> SimpleNamespace:
        score = columns["photo"].mean(axis=(1, 2, 3)) / 255
        return SimpleNamespace(score=score, p_value=np.exp(-score), severity=score / 0.9, flagged=score > 0.9)

    def explain(self, columns: Mapping[str, NDArray[Any]], *, n_top: int) -> list[Sequence[Any]]:
        return [[] for _ in columns["photo"]]


class Bench:
    """A scorer with all that it stands on."""

    def __init__(self) -> None:
        self.log, self.sink, self.metrics_registry = MemoryLog(), MemorySink(), CollectorRegistry()
        source = MemorySource(self.log, max_batch=16)
        self.scorer = Scorer(
            source,
            ImageDecoder(SCHEMA),
            SimpleNamespace(current=SimpleNamespace(version=1, model=Brightness())),  # type: ignore[arg-type]
            AtLeastOnce(source, self.sink),
            pace=Pace(16),
            metrics=ScorerMetrics(self.metrics_registry),
            health=Health(live_timeout_s=60),
        )

    def until_idle(self) -> None:
        while self.scorer.turn():
            pass


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_hostile_pictures_become_dead_letters_and_their_neighbours_get_verdicts(
    bench: Bench, hostile_images: dict[str, Any], encode: Callable[..., bytes]
) -> None:
    good = encode(PIL.Image.new("RGB", (20, 20), "black"), "JPEG")
    for name, hostile in hostile_images.items():
        bench.log.append("photos", hostile.content, key=name.encode())
        bench.log.append("photos", good)
    bench.until_idle()
    found = {(bad.raw.key or b"").decode(): bad.reason for bad in bench.sink.flushed_bad}
    assert found == {name: hostile.reason for name, hostile in hostile_images.items()}
    assert all(bad.detail for bad in bench.sink.flushed_bad)
    scored = [event_id(raw) for verdicts in bench.sink.flushed for raw in verdicts.batch.raw]
    assert scored == [f"photos-0-{2 * i + 1}" for i in range(len(hostile_images))]
    assert bench.log.committed["group"] == bench.log.ends()
    for reason in set(found.values()):
        labels = {"topic": "photos", "reason": reason}
        counted = bench.metrics_registry.get_sample_value("srr_records_dead_lettered_total", labels)
        assert counted == list(found.values()).count(reason)


def test_a_batch_of_nothing_but_hostile_pictures_is_no_trouble(bench: Bench, hostile_images: dict[str, Any]) -> None:
    for hostile in hostile_images.values():
        bench.log.append("photos", hostile.content)
    bench.until_idle()
    assert sum(len(verdicts) for verdicts in bench.sink.flushed) == 0
    assert len(bench.sink.flushed_bad) == len(hostile_images)


def test_the_pictures_reach_the_model_as_they_were_sent(bench: Bench, encode: Callable[..., bytes]) -> None:
    for colour in ("black", "white", "black"):
        bench.log.append("photos", encode(PIL.Image.new("RGB", (20, 20), colour), "PNG"))
    bench.until_idle()
    (verdicts,) = bench.sink.flushed
    assert verdicts.score.tolist() == [0.0, 1.0, 0.0]
    assert verdicts.flagged.tolist() == [False, True, False]
