"""A past stream gone through again: in its order, and never further than it had come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.decoding import JsonDecoder
from consumers.errors import SourceError
from consumers.logs import MemoryLog, OffsetRange
from consumers.records import Field, FieldKind, RecordSchema, StoredRecord
from srr_stream.backtest.recording import GrowingLog, GrowingSource, Recording, record_file, record_topics
from srr_stream.errors import NotEnoughRecords

PLAIN = RecordSchema((Field("x"),))
TIMED = RecordSchema((Field("x"), Field("at", FieldKind.TIMESTAMP)), "at")


def recording_of(places: list[tuple[int, int]], times: list[int]) -> Recording:
    """Records in partitions, at offsets that may have gaps."""
    records = [StoredRecord("t", partition, offset, 0, None, b"{}") for partition, offset in places]
    return Recording("t", records, np.array(times, dtype=np.int64))


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    next_offset, places = {0: draw(st.integers(0, 5)), 1: draw(st.integers(0, 5))}, []
    for partition in draw(st.lists(st.integers(0, 1), min_size=1, max_size=20)):
        places.append((partition, next_offset[partition]))
        next_offset[partition] += draw(st.integers(1, 3))
    times = draw(st.lists(st.integers(0, 100), min_size=len(places), max_size=len(places)))
    return recording_of(places, times)


@settings(deadline=None)
@given(recordings(), st.integers(0, 25), st.integers(0, 110))
def test_a_growing_log_is_a_log_of_what_has_come_and_of_nothing_else(recording: Recording, n: int, time: int) -> None:
    log = GrowingLog(recording)
    log.grow(n)
    come = recording.records[:n]
    for (topic, partition), begin in log.beginnings().items():
        mine = [record for record in come if record.partition == partition]
        every = [record for record in recording.records if record.partition == partition]
        end = log.ends()[topic, partition]
        assert begin == every[0].offset
        assert end == (mine[-1].offset + 1 if mine else begin)
        assert list(log.read(OffsetRange(topic, partition, 0, 10**6))) == mine
        assert list(log.read(OffsetRange(topic, partition, begin + 1, end))) == mine[1:]
        times = [t for t, r in zip(recording.time_ms[:n].tolist(), come, strict=True) if r.partition == partition]
        first = next((record.offset for t, record in zip(times, mine, strict=True) if t >= time), end)
        assert log.offset_at(time)[topic, partition] == first


def test_a_growing_log_never_shrinks() -> None:
    log = GrowingLog(recording_of([(0, 0), (0, 1), (0, 2)], [0, 0, 0]))
    log.grow(2)
    log.grow(1)
    assert log.ends() == {("t", 0): 2}


def test_an_empty_recording_is_no_log() -> None:
    with pytest.raises(NotEnoughRecords, match="there is no record"):
        GrowingLog(recording_of([], []))


def test_a_growing_source_gives_what_has_come_once_and_nothing_while_it_is_held_or_closed() -> None:
    recording = recording_of([(0, 0), (1, 7), (0, 1)], [0, 0, 0])
    log = GrowingLog(recording)
    source = GrowingSource(recording, log)
    assert source.poll(0.0) == []
    log.grow(2)
    source.pause()
    assert source.poll(0.0) == []
    source.resume()
    assert source.poll(0.0, 1) == recording.records[:1]
    assert source.poll(0.0, 9) == recording.records[1:2]
    assert source.assignment == {("t", 0), ("t", 1)}
    log.grow(3)
    source.close()
    assert source.poll(0.0) == []
    assert source.assignment == frozenset()


def test_a_file_without_times_has_supposed_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text('{"x":1}\n' * 5)
    recording = record_file(path, JsonDecoder(PLAIN), PLAIN, rate=2.0)
    assert np.diff(recording.time_ms).tolist() == [500] * 4
    assert recording.supposed_rate == 2.0
    assert record_file(path, JsonDecoder(PLAIN), PLAIN).supposed_rate == 100.0


def test_the_times_of_a_file_are_those_of_its_records(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text('{"x":1,"at":"2024-05-01T00:00:00Z"}\n{"x":"bad"}\n{"x":2,"at":"2024-05-01T00:01:00Z"}\n')
    recording = record_file(path, JsonDecoder(TIMED), TIMED)
    assert recording.supposed_rate is None
    assert recording.time_ms[2] - recording.time_ms[0] == 60_000
    assert recording.time_ms[1] == recording.records[1].timestamp  # a bad record has none of its own
    start = int(recording.time_ms[0])
    part = recording.between(start + 1, start + 60_001)
    assert [record.offset for record in part.records] == [2]
    assert [record.offset for record in recording.newest(2).records] == [1, 2]
    assert [record.offset for record in recording.first(2).records] == [0, 1]


def test_a_file_that_is_not_there_is_an_error_of_the_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        record_file(tmp_path / "a.csv", JsonDecoder(PLAIN), PLAIN)


@pytest.fixture
def log() -> MemoryLog:
    """Two partitions whose records lie between each other in time; one came late."""
    log = MemoryLog()
    for partition, timestamps in ((0, [10, 30, 20, 60]), (1, [0, 40, 50])):
        for timestamp in timestamps:
            log.append("t", b'{"x":%d}' % timestamp, partition=partition, timestamp=timestamp)
    return log


def places(recording: Recording) -> list[tuple[int, int]]:
    return [(record.partition, record.offset) for record in recording.records]


def test_partitions_are_merged_by_the_logs_time_and_keep_their_own_order(log: MemoryLog) -> None:
    recording = record_topics(log, JsonDecoder(PLAIN), PLAIN, name="t")
    assert places(recording) == [(1, 0), (0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (0, 3)]
    assert recording.time_ms.tolist() == [0, 10, 30, 20, 40, 50, 60]


def test_a_part_of_topics_is_said_by_time_and_by_number(log: MemoryLog) -> None:
    def part(**options: int) -> list[tuple[int, int]]:
        return sorted(places(record_topics(log, JsonDecoder(PLAIN), PLAIN, name="t", **options)))

    assert part(since_ms=40) == [(0, 3), (1, 1), (1, 2)]
    assert part(until_ms=40) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert part(since_ms=30, until_ms=50) == [(0, 1), (0, 2), (1, 1)]
    assert part(last=3) == [(0, 3), (1, 1), (1, 2)]  # as many from every partition
    assert part(since_ms=40, last=2) == [(0, 3), (1, 2)]
    assert part(since_ms=99) == []


def test_reading_topics_tells_how_far_it_is(log: MemoryLog) -> None:
    told: list[tuple[int, int]] = []
    record_topics(log, JsonDecoder(PLAIN), PLAIN, name="t", on_read=lambda n, n_all: told.append((n, n_all)))
    assert told[-1] == (7, 7)
