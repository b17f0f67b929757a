"""Windows: the arithmetic against an oracle that counts record by record, and the reader on a log in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers import windows
from consumers.chunks import in_chunks
from consumers.decoding import ImageDecoder, JsonDecoder
from consumers.logs import MemoryLog, OffsetRange
from consumers.records import Field, FieldKind, ImageSpec, Position, RecordSchema, StoredRecord
from consumers.windows import WindowReader, latest, sample

SCHEMA = RecordSchema((Field("x"),))

extents = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 3)),
    st.tuples(st.integers(0, 50), st.integers(0, 400)).map(lambda pair: (pair[0], pair[0] + pair[1])),
    max_size=6,
)


def split(extent: dict[Position, tuple[int, int]]) -> tuple[dict[Position, int], dict[Position, int]]:
    return {p: begin for p, (begin, _) in extent.items()}, {p: end for p, (_, end) in extent.items()}


def naive_shares(sizes: dict[Position, int], n: int) -> list[int]:
    """Deal `n` records out one by one, always to a partition that has got the fewest and has one left."""
    got = dict.fromkeys(sizes, 0)
    for _ in range(n):
        open_ = [position for position in sizes if got[position] < sizes[position]]
        if not open_:
            break
        got[min(open_, key=lambda position: (got[position], position))] += 1
    return sorted(got.values())


@settings(deadline=None)
@given(extents, st.integers(0, 1000))
def test_latest_deals_out_as_if_one_by_one(extent: dict[Position, tuple[int, int]], n: int) -> None:
    begins, ends = split(extent)
    ranges = latest(begins, ends, n)
    sizes = {position: ends[position] - begins[position] for position in ends}
    shares = sorted([r.size for r in ranges] + [0] * (len(sizes) - len(ranges)))
    assert shares == naive_shares(sizes, n)
    assert all(r.stop == ends[r.topic, r.partition] for r in ranges)
    assert all(r.start >= begins[r.topic, r.partition] for r in ranges)
    assert list(ranges) == sorted(ranges)


@settings(deadline=None)
@given(extents, st.integers(1, 1500), st.integers(0, 5))
def test_a_sample_stays_within_the_log_and_its_size_and_never_overlaps(
    extent: dict[Position, tuple[int, int]], n: int, seed: int
) -> None:
    begins, ends = split(extent)
    ranges = sample(begins, ends, n, np.random.default_rng(seed))
    offsets = [(r.topic, r.partition, offset) for r in ranges for offset in range(r.start, r.stop)]
    assert len(offsets) == len(set(offsets)) <= n
    assert all(begins[topic, partition] <= offset < ends[topic, partition] for topic, partition, offset in offsets)
    total = sum(ends[p] - begins[p] for p in ends)
    assert len(offsets) == total if total <= n else len(offsets) > n - 110 * len(ends)


def test_a_sample_is_spread_over_the_whole_span() -> None:
    begins, ends = {("t", 0): 0}, {("t", 0): 100_000}
    ranges = sample(begins, ends, 1000, np.random.default_rng(0))
    assert [r.start // 10_000 for r in ranges] == list(range(10))
    assert sum(r.size for r in ranges) == 1000


def log_of(times: list[list[int]]) -> MemoryLog:
    """Make a log with a partition for every list of times; x counts the records."""
    log = MemoryLog()
    count = 0
    for partition, of_partition in enumerate(times):
        for time_ms in of_partition:
            log.append("t", json.dumps({"x": count}).encode(), partition=partition, timestamp=time_ms)
            count += 1
    return log


def reader(log: MemoryLog, *, mode: str = "latest", max_size: int = 10, span_s: float | None = None) -> WindowReader:
    return WindowReader(
        log,
        JsonDecoder(SCHEMA),
        mode=mode,  # type: ignore[arg-type]
        max_size=max_size,
        span_s=span_s,
        clock=lambda: 100.0,
    )


def test_rows_are_in_the_order_of_time_then_place() -> None:
    #      partition 0: ---5---9---9---      partition 1: 1---9---
    window = reader(log_of([[5000, 9000, 9000], [1000, 9000]])).read()
    assert [(int(t), r.partition, r.offset) for t, r in zip(window.batch.time_ms, window.batch.raw, strict=True)] == [
        (1000, 1, 0),
        (5000, 0, 0),
        (9000, 0, 1),
        (9000, 0, 2),
        (9000, 1, 1),
    ]
    assert window.batch.columns["x"].tolist() == [3.0, 0.0, 1.0, 2.0, 4.0]


def test_the_same_ranges_give_the_same_window_after_more_was_written() -> None:
    log = log_of([[1, 2, 3], [4]])
    windows = reader(log)
    first = windows.read()
    log.append("t", b'{"x": 99}')
    again = windows.read_ranges(first.ranges)
    assert again.ranges == first.ranges
    assert again.batch.columns["x"].tolist() == first.batch.columns["x"].tolist()
    assert windows.read().batch.columns["x"].max() == 99


def test_bad_records_are_counted_by_reason_and_left_out() -> None:
    log = log_of([[1, 2]])
    for value in (b"{", b"[]", b"nope"):
        log.append("t", value)
    window = reader(log).read()
    assert (len(window.batch), window.n_bad) == (2, 3)
    assert dict(window.bad_reasons) == {"not_json": 2, "not_an_object": 1}


def test_an_empty_log_gives_an_empty_window() -> None:
    windows = reader(MemoryLog())
    window = windows.read()
    assert (len(window.batch), window.ranges, windows.available(), windows.end()) == (0, (), 0, 0)


def test_a_span_takes_what_is_young_enough_and_of_that_the_newest() -> None:
    # The clock stands at 100 s; 20 s back are 80 s.
    log = log_of([[10_000, 79_999, 80_000, 90_000], [70_000, 99_000]])
    assert sorted(reader(log, mode="span", span_s=20.0).read().batch.time_ms.tolist()) == [80_000, 90_000, 99_000]
    assert sorted(reader(log, mode="span", span_s=20.0, max_size=2).read().batch.time_ms.tolist()) == [90_000, 99_000]


def test_a_sample_over_a_span_leaves_the_older_records_out() -> None:
    log = log_of([list(range(0, 100_000, 10))])
    window = reader(log, mode="sample", span_s=50.0, max_size=1000).read()
    times = window.batch.time_ms
    assert len(times) == 1000
    assert times.min() >= 50_000
    assert np.histogram(times, bins=5, range=(50_000, 100_000))[0].tolist() == [200] * 5


def test_a_large_window_is_decoded_in_parts_and_joined() -> None:
    window = reader(log_of([list(range(5001))]), max_size=5001).read()
    assert window.batch.columns["x"].tolist() == list(range(5001))


def test_available_and_end_count_what_the_log_holds() -> None:
    log = log_of([[1, 2, 3], [4]])
    assert (reader(log).available(), reader(log).end()) == (4, 4)


@pytest.mark.parametrize("mode", ["span", "sample"])
def test_a_mode_over_a_span_needs_the_span(mode: str) -> None:
    with pytest.raises(ValueError, match="needs span_s"):
        reader(MemoryLog(), mode=mode)


def test_a_partition_that_appears_between_two_questions_breaks_nothing() -> None:
    class Growing(MemoryLog):
        def ends(self) -> dict[Position, int]:
            found = dict(super().ends())
            self.append("t", b'{"x": 1}', partition=len(found))
            return found

    log = Growing()
    log.append("t", b'{"x": 0}')
    assert reader(log).available() == 1
    assert reader(log).ranges()[0] == OffsetRange("t", 0, 0, 1)


# Pictures


def of_pictures(values: list[bytes], **options: Any) -> WindowReader:
    log = MemoryLog()
    for i, value in enumerate(values):
        log.append("t", value, partition=i % 2, timestamp=i)
    schema = RecordSchema((Field("photo", FieldKind.IMAGE, image=ImageSpec(3, 2, "grey")),))
    return WindowReader(log, ImageDecoder(schema), max_size=1000, **options)


def test_pictures_come_in_the_order_of_time_without_their_files(
    encode: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "_CHUNK_BYTES", 300)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 2, 3), dtype=np.uint8)
    values = [encode(PIL.Image.fromarray(picture), "PNG") for picture in pixels]
    values[3] = b"nonsense"
    window = of_pictures(values).read()
    good = [i for i in range(20) if i != 3]
    assert np.array_equal(window.batch.columns["photo"], pixels[good][..., None])
    assert window.batch.time_ms.tolist() == good
    assert [(record.offset, record.value) for record in window.batch.raw] == [(i // 2, None) for i in good]
    assert window.bad_reasons == {"not_an_image": 1}


@pytest.mark.parametrize("values", [[], [b"nonsense"]])
def test_a_window_without_pictures_has_their_shape(values: list[bytes]) -> None:
    batch = of_pictures(values).read().batch
    assert (batch.columns["photo"].shape, batch.columns["photo"].dtype) == ((0, 2, 3, 1), np.uint8)


def test_records_are_decoded_in_chunks_of_so_many_or_so_many_bytes() -> None:
    sizes = [1, 1, 1, 1, 20, 3, 3, 3, 3, 1]
    records = [StoredRecord("t", 0, i, 0, None, bytes(size)) for i, size in enumerate(sizes)]
    assert [len(chunk) for chunk in in_chunks(iter(records), n_records=4, n_bytes=10)] == [4, 1, 4, 1]
