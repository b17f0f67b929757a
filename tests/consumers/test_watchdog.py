"""Is a partition stalled, or only idle."""

from __future__ import annotations

import pytest

from consumers.watchdog import ProgressWatchdog

PLACE = ("t", 0)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_partition_that_moves_is_never_doubted(clock: Clock) -> None:
    watchdog = ProgressWatchdog(10.0, clock=clock)
    for offset in range(100):
        clock.now += 4.0
        watchdog.update({PLACE: offset})
        assert watchdog.doubts == []


def test_one_that_stands_before_its_end_is_stalled_after_the_patience_and_not_before(clock: Clock) -> None:
    watchdog = ProgressWatchdog(10.0, clock=clock)
    watchdog.update({PLACE: 5})
    clock.now = 6.0
    watchdog.update({PLACE: 5})
    assert watchdog.doubts == [PLACE]
    assert watchdog.judge({PLACE: 9}) is None
    clock.now = 10.5
    watchdog.update({PLACE: 5})
    assert watchdog.judge({PLACE: 9}) == "t-0 has given nothing from offset 5 on for 10 s, although its end is 9"


def test_one_without_a_place_to_read_from_is_stalled_too(clock: Clock) -> None:
    watchdog = ProgressWatchdog(10.0, clock=clock)
    watchdog.update({PLACE: None})
    clock.now = 11.0
    watchdog.update({PLACE: None})
    assert "from no place on" in str(watchdog.judge({PLACE: 9}))


def test_a_record_that_comes_to_an_idle_partition_has_the_whole_patience(clock: Clock) -> None:
    watchdog = ProgressWatchdog(10.0, clock=clock)
    watchdog.update({PLACE: 5})
    clock.now = 100.0
    watchdog.update({PLACE: 5})
    assert watchdog.judge({PLACE: 5}) is None
    clock.now = 106.0
    assert watchdog.judge({PLACE: 6}) is None
    clock.now = 111.0
    assert watchdog.judge({PLACE: 6}) is not None


def test_one_that_was_given_away_and_came_back_begins_anew(clock: Clock) -> None:
    watchdog = ProgressWatchdog(10.0, clock=clock)
    watchdog.update({PLACE: 5})
    watchdog.update({})
    clock.now = 11.0
    watchdog.update({PLACE: 5})
    assert watchdog.judge({PLACE: 9}) is None


def test_ends_are_not_asked_for_at_every_turn(clock: Clock) -> None:
    watchdog = ProgressWatchdog(10.0, clock=clock)
    watchdog.update({PLACE: 5})
    clock.now = 6.0
    watchdog.judge({PLACE: 5})
    clock.now = 8.0
    assert watchdog.doubts == []


def test_after_a_reset_nothing_is_doubted(clock: Clock) -> None:
    watchdog = ProgressWatchdog(10.0, clock=clock)
    watchdog.update({PLACE: 5})
    watchdog.reset()
    clock.now = 20.0
    assert watchdog.doubts == []
