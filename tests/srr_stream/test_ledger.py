"""The checker itself: every finding by construction, and a slow reference beside it on random schedules."""

from __future__ import annotations

import re
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srr_stream.ledger import Entry, Fate, InputPartition, Kind, Ledger, Mode, Output, Place, check

PLACE = ("events", 0)


def held(n: int = 10, *, begin: int = 0, without: Sequence[int] = (), **facts: Any) -> InputPartition:
    """Return a partition that holds a record at every offset but those in `without`."""
    offsets = [offset for offset in range(begin, n) if offset not in without]
    return InputPartition(begin, n, np.array(offsets, dtype=np.int64), **facts)


def verdict(offset: int, **changes: Any) -> Entry:
    entry = Entry("events", 0, offset, to_partition=0, to_offset=offset, digest=offset, version=1)
    return replace(entry, **changes)


def dead(offset: int, **changes: Any) -> Entry:
    return verdict(offset, version=-1, **changes)


def audit(
    verdicts: Sequence[Entry] | None,
    letters: Sequence[Entry] = (),
    alerts: Sequence[Entry] | None = None,
    *,
    inputs: InputPartition | None = None,
    committed: int | None = 10,
    mode: Mode = "at_least_once",
    starts_late: bool = False,
    **of_scores: Any,
) -> Ledger:
    return check(
        {PLACE: inputs or held()},
        scores=None if verdicts is None else Output.of("scores", verdicts, **of_scores),
        alerts=None if alerts is None else Output.of("alerts", alerts),
        dead_letters=Output.of("dead", letters),
        committed={} if committed is None else {PLACE: committed},
        mode=mode,
        starts_late=starts_late,
    )


def kinds(ledger: Ledger) -> dict[Kind, int]:
    return {finding.kind: finding.n for finding in ledger.findings}


def all_but(*offsets: int) -> list[Entry]:
    return [verdict(offset) for offset in range(10) if offset not in offsets]


@pytest.mark.parametrize("mode", ["at_least_once", "exactly_once"])
def test_a_stream_that_was_answered_once_has_no_findings(mode: Mode) -> None:
    ledger = audit(all_but(3), [dead(3)], mode=mode)
    assert kinds(ledger) == {}
    line = ledger.lines[0]
    assert (line.n_records, line.n_scored, line.n_dead_lettered, line.n_waiting) == (10, 9, 1, 0)


def test_a_record_that_the_group_passed_and_nobody_answered_is_lost() -> None:
    ledger = audit(all_but(3))
    assert kinds(ledger) == {Kind.LOST: 1}
    assert ledger.finding(Kind.LOST).examples[0][:3] == ("events", 0, 3)
    assert not ledger.is_kept


def test_a_commit_beyond_the_last_answer_is_told_in_these_words() -> None:
    ledger = audit(all_but(8, 9))
    assert kinds(ledger) == {Kind.COMMITTED_AHEAD: 2}
    assert "committed beyond it" in ledger.faults[0].examples[0].detail


@pytest.mark.parametrize("committed", [8, None])
def test_what_the_group_has_not_passed_is_waiting_and_no_fault(committed: int | None) -> None:
    ledger = audit(all_but(8, 9), committed=committed)
    assert kinds(ledger) == {}
    assert ledger.lines[0].n_waiting == 2


def test_offsets_without_a_record_need_no_answer() -> None:
    assert kinds(audit(all_but(3, 4), inputs=held(without=[3, 4], never=np.array([3])))) == {}


def test_what_retention_took_from_the_input_is_gone_and_not_lost() -> None:
    ledger = audit([verdict(offset) for offset in (2, 5, 6, 7, 8, 9)], inputs=held(begin=5))
    assert kinds(ledger) == {}
    assert ledger.lines[0].n_gone == 1


def test_an_answer_to_a_record_that_was_compacted_away_is_gone_and_not_unexplained() -> None:
    ledger = audit(all_but(), inputs=held(without=[3]))
    assert kinds(ledger) == {}
    assert ledger.lines[0].n_gone == 1


def test_what_retention_took_from_the_output_cannot_be_told_from_what_was_lost() -> None:
    ledger = audit([verdict(offset) for offset in (4, 5, 7, 8, 9)], begins={0: 4})
    assert kinds(ledger) == {Kind.LOST: 1}  # 6: its answer would lie behind that of 5, which is there
    assert ledger.lines[0].n_unverifiable == 4
    assert any("beginning was removed" in note for note in ledger.notes)


def test_nothing_is_lost_for_sure_where_the_output_is_compacted() -> None:
    ledger = audit(all_but(6), has_gaps=True)
    assert kinds(ledger) == {}
    assert ledger.lines[0].n_unverifiable == 1


def test_a_group_that_began_at_the_end_owes_nothing_from_before() -> None:
    ledger = audit(all_but(0, 1, 6), starts_late=True)
    assert kinds(ledger) == {Kind.LOST: 1}
    assert kinds(audit([], committed=10, starts_late=True)) == {}


def test_a_double_breaks_exactly_once_alone() -> None:
    twice = [*all_but(), verdict(4, to_offset=20)]
    assert kinds(audit(twice, mode="exactly_once")) == {Kind.DOUBLED: 1}
    ledger = audit(twice)
    assert kinds(ledger) == {Kind.REPEATED: 1}
    assert ledger.is_kept


def test_doubles_of_one_version_that_differ_break_at_least_once() -> None:
    ledger = audit([*all_but(), verdict(4, to_offset=20, digest=99)])
    assert kinds(ledger) == {Kind.REPEATED: 1, Kind.DIFFERING: 1}
    assert not ledger.is_kept


def test_doubles_of_two_versions_break_nothing_and_name_both() -> None:
    """A model was swapped between a crash and the second time."""
    ledger = audit([*all_but(), verdict(4, to_offset=20, digest=99, version=2)])
    assert kinds(ledger) == {Kind.REPEATED: 1, Kind.RESCORED: 1}
    assert "by versions 1, 2" in ledger.finding(Kind.RESCORED).examples[0].detail
    assert ledger.is_kept


def test_doubles_that_differ_by_a_label_that_came_meanwhile_break_nothing() -> None:
    """A record was marked normal between a crash and the second time: the first answer has an alert of its own."""
    first = verdict(4, is_flagged=True)
    again = verdict(4, to_offset=20, digest=99, mark=7)
    ledger = audit([*all_but(4), first, again], alerts=[first])
    assert kinds(ledger) == {Kind.REPEATED: 1, Kind.RELABELLED: 1}
    assert "records near it were marked normal meanwhile" in ledger.finding(Kind.RELABELLED).examples[0].detail
    assert ledger.is_kept
    once_more = verdict(4, to_offset=21, digest=98, mark=7)
    ledger = audit([*all_but(4), first, again, once_more], alerts=[first])
    assert kinds(ledger) == {Kind.REPEATED: 2, Kind.RELABELLED: 2, Kind.DIFFERING: 1}
    assert not ledger.is_kept


def test_what_is_near_a_record_marked_normal_needs_no_alert_and_exactly_once_allows_none() -> None:
    marked = verdict(4, mark=7)
    assert kinds(audit([*all_but(4), marked], alerts=[], mode="exactly_once")) == {}
    ledger = audit([*all_but(4), marked], alerts=[verdict(4, digest=99)], mode="exactly_once")
    assert kinds(ledger) == {Kind.ALERT_UNEXPLAINED: 1}


def test_an_alert_from_before_a_label_came_is_explained_by_it_at_least_once() -> None:
    """A crash lost the first verdict, not its alert."""
    assert kinds(audit([*all_but(4), verdict(4, mark=7)], alerts=[verdict(4, digest=99)])) == {}


def test_dead_letters_that_differ_break_at_least_once() -> None:
    letters = [dead(3), dead(3, to_offset=20, digest=99)]
    assert kinds(audit(all_but(3), letters))[Kind.DIFFERING] == 1


def test_a_verdict_and_a_dead_letter_of_one_record_are_one_too_many() -> None:
    assert kinds(audit(all_but(), [dead(3)])) == {Kind.BOTH: 1}


def test_first_answers_out_of_order_are_found_and_repeated_ones_are_not() -> None:
    replayed = [verdict(offset, to_offset=i) for i, offset in enumerate([0, 1, 2, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9])]
    assert Kind.OUT_OF_ORDER not in kinds(audit(replayed))
    swapped = [verdict(offset, to_offset=i) for i, offset in enumerate([0, 1, 3, 2, 4, 5, 6, 7, 8, 9])]
    ledger = audit(swapped)
    assert kinds(ledger) == {Kind.OUT_OF_ORDER: 1}
    assert ledger.faults[0].examples[0].offset == 2


def test_answers_in_several_output_partitions_are_told_and_no_fault() -> None:
    ledger = audit([verdict(offset, to_partition=offset % 2) for offset in range(10)])
    assert kinds(ledger) == {Kind.SPREAD: 1}
    assert ledger.is_kept


def test_an_aborted_verdict_that_a_reader_gets_is_found() -> None:
    aborted = verdict(3, to_offset=20, fate=Fate.ABORTED)
    assert kinds(audit([*all_but(3), aborted], mode="exactly_once"))[Kind.UNCOMMITTED_VISIBLE] == 1


def test_a_committed_verdict_that_a_reader_does_not_get_is_found() -> None:
    hidden = verdict(3, is_visible=False)
    assert kinds(audit([*all_but(3), hidden], mode="exactly_once"))[Kind.COMMITTED_HIDDEN] == 1


def test_an_aborted_attempt_that_nobody_gets_is_no_double() -> None:
    aborted = verdict(3, to_offset=20, fate=Fate.ABORTED, is_visible=False)
    assert kinds(audit([*all_but(), aborted], mode="exactly_once")) == {}


def test_an_answer_in_an_open_transaction_is_undecided_and_not_lost() -> None:
    ledger = audit([*all_but(9), verdict(9, fate=Fate.OPEN, is_visible=False)], mode="exactly_once")
    assert kinds(ledger) == {}
    assert ledger.lines[0].n_undecided == 1


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (verdict(3, topic="others", to_offset=20), "no partition of the input"),
        (verdict(3, partition=7, to_offset=20), "no partition of the input"),
        (verdict(10, to_offset=20), "the log ends at 10"),
        (verdict(2, to_offset=20), "there never was a committed record"),
    ],
)
def test_an_answer_to_what_never_was_is_unexplained(entry: Entry, why: str) -> None:
    ledger = audit([*all_but(2), entry], inputs=held(without=[2], never=np.array([2])))
    assert kinds(ledger) == {Kind.UNEXPLAINED: 1}
    assert ledger.faults[0].examples[0].topic == "scores"
    assert why in ledger.faults[0].examples[0].detail


def test_a_verdict_without_a_version_is_found() -> None:
    assert kinds(audit([*all_but(3), verdict(3, version=-1)])) == {Kind.NO_VERSION: 1}


def test_verdicts_are_counted_by_version() -> None:
    assert audit([*all_but(3), verdict(3, version=2)]).n_by_version == {1: 9, 2: 1}


def test_without_a_topic_of_all_verdicts_completeness_is_said_to_be_unknown() -> None:
    ledger = audit(None, alerts=[verdict(3, is_flagged=True)])
    assert kinds(ledger) == {}
    assert not ledger.is_complete
    assert "leave no trace" in ledger.notes[0]
    assert ledger.lines[0].n_waiting is None


def test_alerts_alone_are_checked_for_doubles_order_and_offsets() -> None:
    alerts = [verdict(3, to_offset=1), verdict(2, to_offset=2), verdict(2, to_offset=3), verdict(99, to_offset=4)]
    found = kinds(audit(None, alerts=alerts, mode="exactly_once"))
    assert found == {Kind.DOUBLED: 1, Kind.OUT_OF_ORDER: 1, Kind.UNEXPLAINED: 1}


FLAGGED = [*all_but(3), verdict(3, is_flagged=True)]


def test_alerts_that_are_the_flagged_verdicts_are_right() -> None:
    assert kinds(audit(FLAGGED, alerts=[verdict(3, is_flagged=True)])) == {}


def test_a_flagged_verdict_without_an_alert_is_found() -> None:
    assert kinds(audit(FLAGGED, alerts=[])) == {Kind.ALERT_MISSING: 1}


def test_an_alert_that_the_group_has_not_passed_may_be_on_its_way() -> None:
    assert kinds(audit(FLAGGED, alerts=[], committed=3)) == {}


def test_an_alert_of_an_unflagged_record_is_found() -> None:
    alerts = [verdict(3, is_flagged=True), verdict(4, to_offset=9)]
    assert kinds(audit(FLAGGED, alerts=alerts)) == {Kind.ALERT_UNEXPLAINED: 1}


def test_an_alert_that_is_not_its_verdict_is_found() -> None:
    assert kinds(audit(FLAGGED, alerts=[verdict(3, is_flagged=True, digest=77)])) == {Kind.ALERT_DIFFERS: 1}


def test_only_the_part_that_was_asked_for_is_checked() -> None:
    ledger = audit([*all_but(1, 6), verdict(2, to_offset=30, digest=5)], inputs=held(since=5))
    assert kinds(ledger) == {Kind.LOST: 1}
    assert ledger.lines[0].n_records == 5


def test_ten_examples_are_named_and_all_are_counted() -> None:
    ledger = audit(
        [verdict(29), verdict(29, to_offset=40, digest=1)], inputs=held(30), committed=30, mode="at_least_once"
    )
    lost = ledger.finding(Kind.LOST)
    assert lost.n == 29
    assert [example.offset for example in lost.examples] == list(range(10))


def test_a_commit_beyond_the_end_of_the_log_is_noted() -> None:
    assert any("was the topic made anew" in note for note in audit(all_but(), committed=500).notes)


def test_an_empty_input_has_no_findings() -> None:
    empty = InputPartition(0, 0, np.empty(0, dtype=np.int64))
    assert kinds(audit([], inputs=empty, committed=None)) == {}


def test_half_a_million_records_take_less_than_200_mb() -> None:
    n = 500_000
    offsets = np.arange(n)
    scores = Output(
        "scores",
        (PLACE,),
        np.zeros(n, dtype=np.int32),
        offsets,
        np.zeros(n, dtype=np.int32),
        offsets,
        offsets.astype(np.uint64),
        np.ones(n, dtype=np.int64),
        np.zeros(n, dtype=np.bool_),
        np.zeros(n, dtype=np.int64),
        np.zeros(n, dtype=np.int8),
        np.ones(n, dtype=np.bool_),
    )
    inputs = {PLACE: InputPartition(0, n, offsets)}
    tracemalloc.start()
    try:
        ledger = check(
            inputs,
            scores=scores,
            alerts=None,
            dead_letters=Output.of("dead", []),
            committed={PLACE: n},
            mode="exactly_once",
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ledger.is_kept
    assert peak < 200e6


# --- a slow reference -----------------------------------------------------------------------------------------------

PLACES: tuple[Place, ...] = (("a", 0), ("a", 1))
ENDS = 8


def reference(
    entries: dict[str, list[Entry]], records: dict[Place, set[int]], committed: dict[Place, int], mode: Mode
) -> Counter[Kind]:
    """Count what is wrong, one record after the other."""
    found: Counter[Kind] = Counter()
    answers: dict[str, dict[tuple[Place, int], list[Entry]]] = {name: {} for name in entries}
    for name, listed in entries.items():
        for entry in sorted(listed, key=lambda e: (e.to_partition, e.to_offset)):
            place = (entry.topic, entry.partition)
            if place not in records or entry.offset not in records[place]:
                found[Kind.UNEXPLAINED] += entry.is_visible
                continue
            if entry.is_visible and entry.fate != Fate.COMMITTED:
                found[Kind.UNCOMMITTED_VISIBLE] += 1
            if not entry.is_visible and entry.fate == Fate.COMMITTED:
                found[Kind.COMMITTED_HIDDEN] += 1
            if entry.is_visible:
                answers[name].setdefault((place, entry.offset), []).append(entry)
        for same in answers[name].values():
            found[Kind.DOUBLED if mode == "exactly_once" else Kind.REPEATED] += len(same) - 1
            if mode == "at_least_once":
                found[Kind.RESCORED] += sum(entry.version != same[0].version for entry in same)
                for version in {entry.version for entry in same}:
                    mine_of = [entry for entry in same if entry.version == version]
                    found[Kind.RELABELLED] += sum(entry.mark != mine_of[0].mark for entry in mine_of)
                    for mark in {entry.mark for entry in mine_of}:
                        alike = [entry for entry in mine_of if entry.mark == mark]
                        found[Kind.DIFFERING] += sum(entry.digest != alike[0].digest for entry in alike)
        for place in PLACES:
            used = {e.to_partition for (at, _), same in answers[name].items() if at == place for e in same}
            found[Kind.SPREAD] += len(used) > 1
            for to_partition in used:
                mine = [
                    e
                    for (at, _), same in answers[name].items()
                    if at == place
                    for e in same
                    if e.to_partition == to_partition
                ]
                seen: list[int] = []
                for entry in sorted(mine, key=lambda e: e.to_offset):
                    if entry.offset not in seen:
                        found[Kind.OUT_OF_ORDER] += bool(seen) and entry.offset < max(seen)
                        seen.append(entry.offset)
    for place, offsets in records.items():
        answered = {o for name in entries for (at, o) in answers[name] if at == place}
        for offset in offsets:
            is_open = any(
                e.fate == Fate.OPEN and not e.is_visible and (e.topic, e.partition, e.offset) == (*place, offset)
                for listed in entries.values()
                for e in listed
            )
            found[Kind.BOTH] += all((place, offset) in answers[name] for name in entries)
            if offset < committed.get(place, 0) and offset not in answered and not is_open:
                is_behind = any(other > offset for other in answered)
                found[Kind.LOST if is_behind else Kind.COMMITTED_AHEAD] += 1
    return +found


def entry_strategy() -> st.SearchStrategy[Entry]:
    return st.builds(
        Entry,
        topic=st.sampled_from(["a", "a", "a", "b"]),
        partition=st.integers(0, 1),
        offset=st.integers(0, ENDS),
        to_partition=st.integers(0, 1),
        to_offset=st.just(0),
        digest=st.integers(0, 1),
        version=st.sampled_from([1, 1, 2]),
        mark=st.sampled_from([0, 0, 7, 8]),
        fate=st.sampled_from([Fate.COMMITTED, Fate.COMMITTED, Fate.ABORTED, Fate.OPEN]),
        is_visible=st.booleans(),
    )


def numbered(entries: list[Entry]) -> list[Entry]:
    return [replace(entry, to_offset=i) for i, entry in enumerate(entries)]


@settings(max_examples=300, deadline=None)
@given(
    verdicts=st.lists(entry_strategy(), max_size=25).map(numbered),
    letters=st.lists(entry_strategy(), max_size=6).map(numbered),
    missing=st.tuples(st.sets(st.integers(0, ENDS - 1)), st.sets(st.integers(0, ENDS - 1))),
    goes_on=st.tuples(st.none() | st.integers(0, ENDS), st.none() | st.integers(0, ENDS)),
    mode=st.sampled_from(["at_least_once", "exactly_once"]),
)
def test_any_schedule_is_judged_as_by_a_slow_and_obvious_reference(
    verdicts: list[Entry],
    letters: list[Entry],
    missing: tuple[set[int], set[int]],
    goes_on: tuple[int | None, int | None],
    mode: Mode,
) -> None:
    records = {place: set(range(ENDS)) - gone for place, gone in zip(PLACES, missing, strict=True)}
    committed = {place: offset for place, offset in zip(PLACES, goes_on, strict=True) if offset is not None}
    inputs = {
        place: InputPartition(0, ENDS, np.array(sorted(records[place]), dtype=np.int64), np.array(sorted(gone)))
        for place, gone in zip(PLACES, missing, strict=True)
    }
    ledger = check(
        inputs,
        scores=Output.of("scores", verdicts),
        alerts=None,
        dead_letters=Output.of("dead", letters),
        committed=committed,
        mode=mode,
    )
    assert Counter(kinds(ledger)) == reference({"scores": verdicts, "dead": letters}, records, committed, mode)


def test_every_finding_is_on_the_page_of_the_audit() -> None:
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| ([a-z ]+) \|", page, flags=re.M)) - {"finding"} == {kind.value for kind in Kind}
