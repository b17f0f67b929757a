"""How many records make a batch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from srr_stream.pace import Pace


def test_quick_records_reach_the_largest_batch_in_a_few_turns() -> None:
    pace = Pace(5000, 1.0)
    turns = 0
    while pace.n_records < 5000:
        pace.update(pace.n_records, 1e-5 * pace.n_records)
        turns += 1
    assert turns <= 7


def test_the_costliest_pictures_shrink_the_batch_at_once() -> None:
    pace = Pace(128, 1.0)
    pace.update(64, 32.0)
    assert pace.n_records == 2


def test_a_batch_that_was_not_full_proves_nothing_about_a_larger_one() -> None:
    pace = Pace(5000, 1.0)
    for _ in range(20):
        pace.update(3, 1e-5)
    assert pace.n_records == 64


@given(st.integers(1, 5000), st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 1e6)), max_size=30))
def test_a_batch_has_one_record_at_least_and_never_more_than_the_most(
    most: int, turns: list[tuple[int, float]]
) -> None:
    pace = Pace(most, 1.0)
    for n, seconds in turns:
        pace.update(n, seconds)
        assert 1 <= pace.n_records <= most
