"""The history of scoring: buckets, swaps, and the pace of the last minute."""

from __future__ import annotations

import numpy as np

from consumers.records import Batch, Field, RecordSchema, StoredRecord, Verdicts
from srr_stream.history import BUCKET_S, N_BUCKETS, History
from srr_stream.statusz import ScorerBoard

SCHEMA = RecordSchema((Field("x"),))


def verdicts(severities: list[float], *, version: int = 1) -> Verdicts:
    severity = np.array(severities, dtype=np.float64)
    raw = [StoredRecord("t", 0, i, 0, None, b"{}") for i in range(len(severity))]
    batch = Batch(SCHEMA, {"x": severity}, raw, np.zeros(len(severity), dtype=np.int64))
    return Verdicts(batch, version, severity, severity, severity, severity >= 1.0)


def test_what_comes_within_ten_seconds_is_one_bucket_and_what_comes_later_another() -> None:
    history = History()
    for at in (1000.0, 1009.9, 1010.0):
        history.add(at, n=10, n_flagged=1, max_severity=at / 1000, version=1)
    assert [(bucket.at, bucket.n, bucket.max_severity) for bucket in history.buckets()] == [
        (1000.0, 20, 1.0099),
        (1010.0, 10, 1.01),
    ]


def test_the_ring_forgets_the_oldest_after_six_hours() -> None:
    history = History()
    for i in range(N_BUCKETS + 5):
        history.add(i * BUCKET_S, n=1, n_flagged=0, max_severity=0.0, version=1)
    buckets = history.buckets()
    assert len(buckets) == N_BUCKETS == 6 * 3600 / BUCKET_S
    assert buckets[0].at == 5 * BUCKET_S


def test_a_clock_that_is_set_back_loses_nothing_and_keeps_the_order() -> None:
    history = History()
    for at in (1000.0, 940.0, 1010.0):
        history.add(at, n=1, n_flagged=0, max_severity=0.0, version=1)
    assert [(bucket.at, bucket.n) for bucket in history.buckets()] == [(1000.0, 2), (1010.0, 1)]


def test_each_change_of_version_is_a_swap_also_back_to_an_old_one() -> None:
    history = History()
    for at, version in ((1000.0, 1), (1001.0, 2), (1002.0, 2), (1003.0, 1)):
        history.add(at, n=1, n_flagged=0, max_severity=0.0, version=version)
    assert history.swaps() == ((1000.0, 1), (1001.0, 2), (1003.0, 1))


def test_the_pace_is_that_of_the_last_minute() -> None:
    history = History()
    history.add(900.0, n=1_000_000, n_flagged=0, max_severity=0.0, version=1)
    history.add(1030.0, n=650, n_flagged=0, max_severity=0.0, version=1)
    assert history.records_per_s(1035.0) == 10.0
    assert history.records_per_s(2000.0) == 0.0


def test_the_board_counts_what_was_published_and_says_it_as_json() -> None:
    board = ScorerBoard(clock=lambda: 1000.0)
    board.count(verdicts([0.1, 1.5, 0.3]), 2)
    board.count(verdicts([], version=2), 1)
    board.note_positions(2, {("t", 1): 7, ("t", 0): 3})
    said = board.to_dict()
    assert said == {
        "assigned": 2,
        "lag": [{"topic": "t", "partition": 0, "records": 3}, {"topic": "t", "partition": 1, "records": 7}],
        "n_scored": 3,
        "n_flagged": 1,
        "n_dead_lettered": 3,
        "last_scored_at": 1000.0,
        "records_per_s": 3 / 60,
        "trouble": None,
    }
    assert board.history_to_dict() == {
        "bucket_s": 10.0,
        "history": [{"at": 1000.0, "n": 3, "n_flagged": 1, "max_severity": 1.5, "version": 1}],
        "swaps": [{"at": 1000.0, "version": 1}],
    }
