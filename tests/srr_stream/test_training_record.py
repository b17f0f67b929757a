"""What a training leaves beside its model: it comes back from the registry, and nobody who scores needs it."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from consumers.records import Batch, Field, FieldKind, ImageSpec, RecordSchema, StoredRecord
from models.persistence import model_to_parts
from models.presets import PRESETS
from models.refinement import Known
from models.training import Trained, TrainingConfig, train
from srr_stream import training_record
from srr_stream.errors import ModelRefused, RegistryError
from srr_stream.registry import Manifest, Registry
from srr_stream.sealed_json import seal, unseal
from srr_stream.training_record import (
    NEIGHBOURS,
    REFINEMENT,
    Neighbours,
    RefinementRecord,
    load_neighbours,
    load_refinement,
    make_neighbours,
    make_refinement,
    match,
    nearest,
    radius_of,
    to_files,
    typical_distance,
)

SCHEMA = RecordSchema((Field("a"), Field("b")))
N = 400


def batch_of(columns: dict[str, NDArray[Any]], schema: RecordSchema = SCHEMA) -> Batch:
    n = len(next(iter(columns.values())))
    raw = [StoredRecord(f"in-{i % 2}", i % 3, 1000 + i, 0, None, b"secret") for i in range(n)]
    return Batch(schema, columns, raw, np.zeros(n, dtype=np.int64))


@pytest.fixture(scope="module")
def window() -> Batch:
    rng = np.random.default_rng(0)
    columns = {"a": rng.normal(size=N), "b": rng.normal(size=N)}
    columns["a"][:20] += 9.0
    return batch_of(columns)


@pytest.fixture(scope="module")
def known() -> Known:
    return Known(np.arange(N) == 100, np.arange(N) == 3)


@pytest.fixture(scope="module")
def trained(window: Batch, known: Known) -> Trained:
    return train(window.features, PRESETS["default"], seed=0, known=known)


@pytest.fixture(params=["a folder", "an object store"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    is_local = request.param == "a folder"
    return Registry(
        str(tmp_path / "registry") if is_local else f"memory://{uuid.uuid4().hex}/registry", keep=2, clock=lambda: 9e9
    )


def publish(registry: Registry, trained: Trained, beside: dict[str, bytes] | None = None) -> Manifest:
    description, weights = model_to_parts(trained.model)
    manifest = Manifest(0, "2026-01-01T00:00:00+00:00", "test", {}, "abc", {}, {}, {}, description, {})
    return registry.publish(manifest, weights, beside)


def test_the_refinement_tells_what_was_excluded_by_which_votes(window: Batch, trained: Trained, known: Known) -> None:
    record = make_refinement(trained, window, known)
    assert record.n_rows == sum(record.rows_by_votes) == N
    assert len(record.rows_by_votes) == record.n_subsets + 1 == 6
    assert record.n_excluded == len(record.excluded) == int((~trained.kept).sum())
    assert [row.votes for row in record.excluded] == sorted((row.votes for row in record.excluded), reverse=True)
    by_id = {row.id: row for row in record.excluded}
    assert by_id["in-0-1-1100"].label == "anomaly"
    assert "in-1-0-1003" not in by_id
    assert {row.label for row in record.excluded if row.offset != 1100} == {None}
    for row in record.excluded:
        assert row.votes == trained.votes[row.offset - 1000]


def test_no_more_excluded_rows_are_listed_than_there_is_room_for(
    window: Batch, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_record, "MAX_EXCLUDED", 7)
    record = make_refinement(trained, window)
    assert len(record.excluded) == 7 < record.n_excluded
    assert min(row.votes for row in record.excluded) >= 4


def test_neighbours_are_kept_rows_as_the_model_sees_them_the_same_for_the_same_seed(
    window: Batch, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_record, "MAX_NEIGHBOURS", 50)
    neighbours = make_neighbours(trained, window, 7)
    rows = [offset - 1000 for _, _, offset in neighbours.places]
    assert len(set(rows)) == 50
    assert trained.kept[rows].all()
    assert neighbours.ids[0] == f"{window.raw[rows[0]].topic}-{window.raw[rows[0]].partition}-{1000 + rows[0]}"
    coordinates = trained.model.coordinates({name: column[rows] for name, column in window.features.items()})
    np.testing.assert_array_equal(neighbours.rows, coordinates)
    assert neighbours.rows.dtype == np.float32
    assert make_neighbours(trained, window, 7).ids == neighbours.ids != make_neighbours(trained, window, 8).ids
    monkeypatch.setattr(training_record, "MAX_BYTES", 4 * neighbours.rows.shape[1] * 10)
    assert len(make_neighbours(trained, window, 7).ids) == 10


def test_where_nothing_was_kept_there_are_no_neighbours(window: Batch, trained: Trained, registry: Registry) -> None:
    nothing = replace(trained, kept=np.zeros(N, dtype=bool))
    neighbours = make_neighbours(nothing, window, 0)
    assert (neighbours.ids, neighbours.radius) == ((), 0.0)
    publish(registry, trained, to_files(make_refinement(nothing, window), neighbours))
    back = load_neighbours(registry, 1)
    assert back is not None
    assert back.rows.shape == (0, 0)


def test_of_pictures_neighbours_are_embeddings() -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (60, 8, 8, 1), dtype=np.uint8)
    schema = RecordSchema((Field("photo", FieldKind.IMAGE, image=ImageSpec(8, 8, "grey")),))
    batch = batch_of({"photo": pictures}, schema)
    config = TrainingConfig(representation="pixels", classifier="gde", scaling="standard", removal="soft")
    trained = train(batch.features, config, seed=0)
    neighbours = make_neighbours(trained, batch, 0)
    assert neighbours.rows.ndim == 2
    rows = [offset - 1000 for _, _, offset in neighbours.places]
    embedding = trained.model.representation.embed(trained.model.preprocessor.transform({"photo": pictures[rows]}))
    np.testing.assert_array_equal(neighbours.rows, embedding.reshape(len(rows), -1))
    assert neighbours.radius > 0.0


def test_both_come_back_from_the_registry_and_go_when_the_version_goes(
    registry: Registry, window: Batch, trained: Trained, known: Known
) -> None:
    refinement, neighbours = make_refinement(trained, window, known), make_neighbours(trained, window, 0)
    manifest = publish(registry, trained, to_files(refinement, neighbours))
    assert set(manifest.files) == {"model.safetensors", REFINEMENT, NEIGHBOURS}
    assert load_refinement(registry, 1) == refinement
    back = load_neighbours(registry, 1)
    assert back is not None
    np.testing.assert_array_equal(back.rows, neighbours.rows)
    assert (back.ids, back.places, back.radius) == (neighbours.ids, neighbours.places, neighbours.radius)
    assert registry.load(1)[1] == manifest
    for _ in range(3):
        publish(registry, trained, to_files(refinement, neighbours))
    assert registry.prune() == (1, 2)
    assert registry.versions() == (3, 4)
    assert not registry._files.list("versions/1", is_deep=True)


def test_a_version_without_them_loads_as_before(registry: Registry, trained: Trained) -> None:
    publish(registry, trained)
    assert load_refinement(registry, 1) is None
    assert load_neighbours(registry, 1) is None
    assert registry.load(1)[0].score({"a": np.zeros(1), "b": np.zeros(1)}).score.shape == (1,)
    with pytest.raises(RegistryError, match="there is no version 9"):
        load_refinement(registry, 9)


def test_no_record_is_in_the_registry(window: Batch, trained: Trained) -> None:
    files = to_files(make_refinement(trained, window), make_neighbours(trained, window, 0))
    assert not [name for name, content in files.items() if b"secret" in content]


@pytest.mark.parametrize("name", [REFINEMENT, NEIGHBOURS])
def test_what_is_damaged_is_refused_by_name_and_scoring_goes_on(
    name: str, tmp_path: Path, window: Batch, trained: Trained
) -> None:
    registry = Registry(str(tmp_path))
    files = to_files(make_refinement(trained, window), make_neighbours(trained, window, 0))
    publish(registry, trained, files)
    load = load_refinement if name == REFINEMENT else load_neighbours
    path = tmp_path / "versions" / "1" / name
    path.write_bytes(files[name][:-1])
    with pytest.raises(ModelRefused, match=f"version 1: {name} is altered or torn") as error:
        load(registry, 1)
    assert error.value.reason == "hash"
    path.unlink()
    with pytest.raises(ModelRefused, match=f"version 1: {name} is missing"):
        load(registry, 1)
    assert registry.load(1)[1].version == 1


def other_format(raw: bytes) -> bytes:
    return seal({**unseal(raw), "format": 2})


def without_votes(raw: bytes) -> bytes:
    return seal({name: value for name, value in unseal(raw).items() if name != "rows_by_votes"})


def with_rows(raw: bytes, **arrays: NDArray[Any]) -> bytes:
    return safetensors.numpy.save({**safetensors.numpy.load(raw), **arrays})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (REFINEMENT, other_format),
        (REFINEMENT, without_votes),
        (REFINEMENT, lambda raw: b"[]"),
        (NEIGHBOURS, lambda raw: b"\0" * 20),
        (NEIGHBOURS, lambda raw: with_rows(raw, rows=np.zeros((3, 2), dtype=np.float32))),
        (NEIGHBOURS, lambda raw: with_rows(raw, topic=np.full(N, 99))),
        (NEIGHBOURS, lambda raw: with_rows(raw, topics=np.frombuffer(b"{", dtype=np.uint8))),
    ],
)
def test_what_is_of_another_format_is_refused(
    name: str, change: Any, tmp_path: Path, window: Batch, trained: Trained
) -> None:
    registry = Registry(str(tmp_path))
    files = to_files(make_refinement(trained, window), make_neighbours(trained, window, 0))
    publish(registry, trained, {**files, name: change(files[name])})
    with pytest.raises(ModelRefused, match=f"version 1: {name} cannot be read") as error:
        (load_refinement if name == REFINEMENT else load_neighbours)(registry, 1)
    assert error.value.reason == "format"


def test_a_publisher_that_fails_leaves_nothing_beside(tmp_path: Path, trained: Trained) -> None:
    registry = Registry(str(tmp_path))
    write = registry._files.write

    def fail_last(name: str, content: bytes) -> None:
        if name.endswith("manifest.json"):
            raise OSError(28, "No space left on device")
        write(name, content)

    registry._files.write = fail_last  # type: ignore[method-assign]
    with pytest.raises(RegistryError, match="No space left"):
        publish(registry, trained, {REFINEMENT: b"{}", NEIGHBOURS: b""})
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


# --- near and far -----------------------------------------------------------------------------------------------------

points = st.lists(
    st.lists(st.integers(-50, 50).map(lambda i: i / 8), min_size=2, max_size=2), min_size=2, max_size=30
).map(lambda rows: np.array(rows, dtype=np.float32))


@given(points, points)
@settings(deadline=None)
def test_the_nearest_row_is_found(some: NDArray[np.float32], rows: NDArray[np.float32]) -> None:
    which, distance = nearest(some, rows)
    slowly = [[float(np.hypot(*(row - point).astype(np.float64))) for row in rows] for point in some]
    np.testing.assert_allclose(distance, [min(far) for far in slowly], atol=1e-12)
    np.testing.assert_allclose([far[i] for far, i in zip(slowly, which, strict=True)], distance, atol=1e-12)


@given(points)
@settings(deadline=None)
def test_the_typical_distance_is_the_quantile_of_what_is_next(rows: NDArray[np.float32]) -> None:
    slowly = [
        min(float(np.hypot(*(a - b).astype(np.float64))) for j, b in enumerate(rows) if j != i)
        for i, a in enumerate(rows)
    ]
    assert typical_distance(rows) == pytest.approx(np.quantile(slowly, 0.95), abs=1e-12)


def test_doubles_and_constant_data_have_no_distance() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 30)).astype(np.float32) * 1e3
    assert typical_distance(np.concatenate([rows, rows])) == 0.0
    assert typical_distance(np.full((20, 3), 0.1, dtype=np.float32)) == 0.0
    assert typical_distance(rows[:1]) == 0.0
    assert typical_distance(np.empty((0, 0), dtype=np.float32)) == 0.0


@pytest.mark.parametrize(
    "told", [{}, {"neighbour_radius": -1.0}, {"neighbour_radius": "1"}, {"neighbour_radius": None}]
)
def test_a_manifest_that_tells_no_distance_has_none(told: dict[str, Any]) -> None:
    assert radius_of(told) == 0.0
    assert radius_of({"neighbour_radius": 0.5}) == 0.5


def test_labels_are_matched_by_place() -> None:
    batch = batch_of({"a": np.zeros(4), "b": np.zeros(4)})
    labels = {
        ("in-0", 0, 1000): "anomaly",
        ("in-1", 1, 1001): "normal",
        ("in-0", 2, 1002): "unsure",
        ("in-1", 0, 1002): "anomaly",
        ("other", 0, 1003): "anomaly",
    }
    known = match(batch.raw, labels)
    assert known.is_anomaly.tolist() == [True, False, False, False]
    assert known.is_normal.tolist() == [False, True, False, False]


def test_the_record_is_json_with_a_digest(window: Batch, trained: Trained) -> None:
    raw = to_files(make_refinement(trained, window), Neighbours(np.empty((0, 0), np.float32), (), ()))[REFINEMENT]
    content = json.loads(raw)
    assert content["format"] == 1
    assert set(content) == {"format", "digest", *RefinementRecord.__dataclass_fields__}
