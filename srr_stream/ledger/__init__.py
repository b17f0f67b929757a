"""Whether the promise of delivery was kept: what was read in against what was written out, record by record.

Pure arithmetic on offsets. It shares no code with the scorer, the sources and the sinks, so that a mistake of theirs is
not repeated here. :mod:`srr_stream.ledger.reader` reads the topics of a broker for it; a simulator can give it entries
of its own making.

A record costs some 60 bytes here: a million of them take tens of megabytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Mode = Literal["at_least_once", "exactly_once"]
Place = tuple[str, int]
"""A partition of a topic: ``(topic, partition)``."""

N_EXAMPLES = 10
NO_VERSION = -1
_EVERYTHING = np.iinfo(np.int64).max


class Fate(IntEnum):
    """What the broker's markers say became of the transaction that wrote a record."""

    COMMITTED = 0
    """Or there was no transaction."""
    ABORTED = 1
    OPEN = 2
    """Not decided when it was looked at."""


class Kind(StrEnum):
    """What a checker may find; the words are those of docs/audit.md."""

    LOST = "lost"
    COMMITTED_AHEAD = "committed ahead"
    DOUBLED = "doubled"
    REPEATED = "repeated"
    RESCORED = "rescored"
    RELABELLED = "relabelled"
    DIFFERING = "differing"
    BOTH = "both"
    OUT_OF_ORDER = "out of order"
    SPREAD = "spread"
    UNCOMMITTED_VISIBLE = "uncommitted visible"
    COMMITTED_HIDDEN = "committed hidden"
    UNEXPLAINED = "unexplained"
    MALFORMED = "malformed"
    NO_VERSION = "no version"
    ALERT_MISSING = "alert missing"
    ALERT_UNEXPLAINED = "alert unexplained"
    ALERT_DIFFERS = "alert differs"
    SCORE_DIFFERS = "score differs"


NO_FAULTS = frozenset({Kind.REPEATED, Kind.RESCORED, Kind.RELABELLED, Kind.SPREAD})
"""What is told and breaks no promise."""


class Example(NamedTuple):
    """One record that a finding is about."""

    topic: str
    partition: int
    offset: int
    detail: str

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}-{self.offset}: {self.detail}"


@dataclass(frozen=True)
class Finding:
    """How often something was found, with the first examples."""

    kind: Kind
    n: int
    examples: tuple[Example, ...]

    @property
    def is_fault(self) -> bool:
        """Whether it breaks the promise."""
        return self.kind not in NO_FAULTS


@dataclass(frozen=True, slots=True)
class Entry:
    """A verdict, an alert or a dead letter, as far as the promise is concerned.

    Parameters
    ----------
    topic, partition, offset
        The input record that it answers.
    to_partition, to_offset
        Where it lies in its own topic.
    digest
        64 bits that are equal if its bytes are.
    version
        The model that it names; `NO_VERSION` for a dead letter, or if it names none.
    is_visible
        Whether a reader of committed records got it.
    mark
        63 bits that are equal if it names the same record marked normal, near which it is not flagged; 0 if none.
    """

    topic: str
    partition: int
    offset: int
    to_partition: int
    to_offset: int
    digest: int = 0
    version: int = NO_VERSION
    is_flagged: bool = False
    fate: Fate = Fate.COMMITTED
    is_visible: bool = True
    mark: int = 0


@dataclass(frozen=True)
class InputPartition:
    """What a partition of the input holds.

    Parameters
    ----------
    begin, end
        The first offset of the log, and the one after its last.
    records
        ``(n,)`` int64, ascending: the offsets at which a reader of committed records finds a record.
    never
        ``(n,)`` int64, ascending: the offsets that never were such a record: markers, and records that were taken back.
        What is in neither was a record once and was compacted away.
    since
        The check begins here, and answers to what lies before are passed over. None: at `begin`, and none is.
    """

    begin: int
    end: int
    records: NDArray[np.int64]
    never: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    since: int | None = None


@dataclass(frozen=True)
class Output:
    """The entries of one output topic, in columns of the same length n.

    ``place`` is an index into ``places``. ``begins`` has the first offset of each partition's log: above 0, something
    was removed. ``has_gaps``: something was compacted away. ``malformed``: records that name no input record.
    """

    topic: str
    places: tuple[Place, ...]
    place: NDArray[np.int32]
    offset: NDArray[np.int64]
    to_partition: NDArray[np.int32]
    to_offset: NDArray[np.int64]
    digest: NDArray[np.uint64]
    version: NDArray[np.int64]
    is_flagged: NDArray[np.bool_]
    mark: NDArray[np.int64]
    fate: NDArray[np.int8]
    is_visible: NDArray[np.bool_]
    begins: Mapping[int, int] = field(default_factory=dict)
    has_gaps: bool = False
    n_malformed: int = 0
    malformed: tuple[Example, ...] = ()

    @classmethod
    def of(cls, topic: str, entries: Sequence[Entry], **facts: Any) -> Output:
        """Return the entries as columns; `facts` are ``begins``, ``has_gaps``, ….

        Examples
        --------
        >>> Output.of("scores", [Entry("events", 0, 7, to_partition=0, to_offset=0, version=1)]).offset.tolist()
        [7]
        """
        rows = OutputRows(topic)
        for entry in entries:
            rows.add(
                (entry.topic, entry.partition),
                entry.offset,
                entry.to_partition,
                entry.to_offset,
                entry.digest,
                entry.version,
                entry.is_flagged,
                entry.mark,
            )
        fate = np.array([entry.fate for entry in entries], dtype=np.int8)
        return rows.build(fate, np.array([entry.is_visible for entry in entries], dtype=np.bool_), **facts)


class OutputRows:
    """Columns that grow row by row, without an object a row."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.n_malformed = 0
        self._malformed: list[Example] = []
        self._places: dict[Place, int] = {}
        self._place = array("i")
        self._offset = array("q")
        self._to_partition = array("i")
        self._to_offset = array("q")
        self._digest = array("Q")
        self._version = array("q")
        self._is_flagged = array("b")
        self._mark = array("q")

    def add(
        self,
        place: Place,
        offset: int,
        to_partition: int,
        to_offset: int,
        digest: int,
        version: int,
        is_flagged: bool,
        mark: int = 0,
    ) -> None:
        """Add an entry."""
        self._place.append(self._places.setdefault(place, len(self._places)))
        self._offset.append(offset)
        self._to_partition.append(to_partition)
        self._to_offset.append(to_offset)
        self._digest.append(digest)
        self._version.append(version)
        self._is_flagged.append(is_flagged)
        self._mark.append(mark)

    def add_malformed(self, to_partition: int, to_offset: int, detail: str) -> None:
        """Add a record that names no input record."""
        self.n_malformed += 1
        if len(self._malformed) < N_EXAMPLES:
            self._malformed.append(Example(self.topic, to_partition, to_offset, detail))

    def __len__(self) -> int:
        return len(self._offset)

    def to_offsets(self, start: int) -> NDArray[np.int64]:
        """Return where the entries from row `start` on lie in their partitions."""
        return _copy(self._to_offset, np.int64)[start:]

    def build(self, fate: NDArray[np.int8], is_visible: NDArray[np.bool_], **facts: Any) -> Output:
        """Return the columns, with what became of every row."""
        return Output(
            self.topic,
            tuple(self._places),
            _copy(self._place, np.int32),
            _copy(self._offset, np.int64),
            _copy(self._to_partition, np.int32),
            _copy(self._to_offset, np.int64),
            _copy(self._digest, np.uint64),
            _copy(self._version, np.int64),
            _copy(self._is_flagged, np.bool_),
            _copy(self._mark, np.int64),
            fate,
            is_visible,
            n_malformed=self.n_malformed,
            malformed=tuple(self._malformed),
            **facts,
        )


@dataclass(frozen=True)
class Line:
    """What was found of one input partition."""

    topic: str
    partition: int
    begin: int
    """Where the check begins."""
    end: int
    committed: int | None
    """Where the group goes on; None: it has committed nothing."""
    n_records: int
    """In the log, from `begin` on."""
    n_scored: int | None
    """Of these, with a verdict; None: there is no topic of all verdicts."""
    n_dead_lettered: int
    n_alerted: int | None
    n_waiting: int | None
    """Not answered yet, and the group has not passed them."""
    n_missing: int | None
    """Not answered, although the group has passed them: lost, or committed ahead."""
    n_unverifiable: int | None
    """The same, but their answers may have been removed from the output by retention or compaction."""
    n_undecided: int
    """Answered within a transaction that was still open."""
    n_gone: int
    """Answered, and no longer in the log."""


@dataclass(frozen=True)
class Ledger:
    """The outcome of a check."""

    mode: Mode
    lines: tuple[Line, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    n_by_version: Mapping[int, int]
    """Version → how many visible verdicts name it."""
    is_complete: bool
    """Whether it could be checked that every record was answered."""

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that break the promise."""
        return tuple(finding for finding in self.findings if finding.is_fault)

    @property
    def is_kept(self) -> bool:
        """Whether the promise was kept, as far as could be checked."""
        return not self.faults

    def with_finding(self, finding: Finding) -> Ledger:
        """Return the same with a finding more."""
        return replace(self, findings=(*self.findings, finding))

    def with_note(self, note: str) -> Ledger:
        """Return the same with a note more."""
        return replace(self, notes=(*self.notes, note))

    def finding(self, kind: Kind) -> Finding:
        """Return what was found of a kind, maybe nothing."""
        return next((finding for finding in self.findings if finding.kind is kind), Finding(kind, 0, ()))


def check(
    inputs: Mapping[Place, InputPartition],
    *,
    scores: Output | None,
    alerts: Output | None,
    dead_letters: Output,
    committed: Mapping[Place, int],
    mode: Mode,
    starts_late: bool = False,
) -> Ledger:
    """Compare what was read in with what was written out.

    Parameters
    ----------
    inputs
        Every partition of the input. It must have been looked at after the outputs, and these after `committed`: then
        whatever the group has passed is published, and whatever is published is in the input.
    scores, alerts
        The topics of all verdicts, and of the flagged ones; None: there is none.
    committed
        Where the group goes on in each partition.
    starts_late
        Whether a new group begins at the end of the log: then what lies before its first answer was never promised.
    """
    rows = _Rows(inputs, [output for output in (scores, alerts, dead_letters) if output is not None])
    found = _Found(rows)
    verdicts = _Answers.of(scores, rows, found) if scores is not None else None
    alerted = _Answers.of(alerts, rows, found) if alerts is not None else None
    dead = _Answers.of(dead_letters, rows, found)

    # After a crash around a swap another version judges again, and may flag others: its alerts are its own. So does the
    # same one, when a label came meanwhile.
    rejudged = np.zeros(rows.n, dtype=np.bool_)
    if mode == "at_least_once":
        rejudged = _judged_by_several([answers for answers in (verdicts, alerted) if answers is not None], rows.n)
    for answers in filter(None, (verdicts, alerted, dead)):
        _check_visibility(answers, found)
        _check_doubles(answers, mode, rows, found)
        _check_order(answers, rows, found, passed_over=rejudged if answers is alerted else None)
    for answers in filter(None, (verdicts, alerted)):
        nameless = answers.is_visible & (answers.output.version < 1)
        found.add_entries(Kind.NO_VERSION, answers, nameless, "the verdict names no model version")
    is_judged = np.zeros(rows.n, dtype=np.bool_)
    for answers in filter(None, (verdicts, alerted)):
        is_judged |= answers.n > 0
    found.add_rows(Kind.BOTH, is_judged & (dead.n > 0), "has a verdict and a dead letter")

    goes_on = rows.spread([committed.get(place, rows.inputs[place].begin) for place in rows.places])
    is_passed = rows.is_checked & (rows.offset < goes_on)
    waiting = missing = unverifiable = undecided = np.zeros(rows.n, dtype=np.bool_)
    if verdicts is not None:
        is_answered = (verdicts.n > 0) | (dead.n > 0)
        floor = _first_answers(rows, is_answered, goes_on) if starts_late else rows.spread([0] * len(rows.places))
        is_open = rows.is_held & ~is_answered & (verdicts.is_open | dead.is_open)
        unanswered = rows.is_held & rows.is_checked & ~is_answered & ~is_open & (rows.offset >= floor)
        horizon = np.maximum(verdicts.horizon(rows), dead.horizon(rows))
        undecided = is_open & rows.is_checked
        waiting = unanswered & ~is_passed
        unverifiable = unanswered & is_passed & (rows.offset < horizon)
        missing = unanswered & is_passed & ~unverifiable
        is_behind = rows.offset < _last_answers(rows, is_answered)
        found.add_rows(
            Kind.LOST, missing & is_behind, "neither verdict nor dead letter, though later ones are answered"
        )
        found.add_rows(
            Kind.COMMITTED_AHEAD,
            missing & ~is_behind,
            "neither verdict nor dead letter, and the group has committed beyond it",
        )
    if verdicts is not None and alerted is not None:
        _check_alerts(verdicts, alerted, is_passed & ~rejudged, rows, found)

    lines = []
    for i, place in enumerate(rows.places):
        part = slice(rows.starts[i], rows.starts[i + 1])
        held = rows.is_held[part] & rows.is_checked[part]

        def n_of(mask: NDArray[np.bool_], part: slice = part) -> int:
            return int(np.count_nonzero(mask[part]))

        lines.append(
            Line(
                *place,
                begin=rows.since[i],
                end=inputs[place].end,
                committed=committed.get(place),
                n_records=int(np.count_nonzero(held)),
                n_scored=None if verdicts is None else int(np.count_nonzero(held & (verdicts.n[part] > 0))),
                n_dead_lettered=int(np.count_nonzero(held & (dead.n[part] > 0))),
                n_alerted=None if alerted is None else int(np.count_nonzero(held & (alerted.n[part] > 0))),
                n_waiting=None if verdicts is None else n_of(waiting),
                n_missing=None if verdicts is None else n_of(missing),
                n_unverifiable=None if verdicts is None else n_of(unverifiable),
                n_undecided=n_of(undecided),
                n_gone=n_of(~rows.is_held & (is_judged | (dead.n > 0))),
            )
        )
    named = verdicts or alerted
    return Ledger(
        mode,
        tuple(lines),
        found.listed(),
        tuple(_notes(rows, scores, alerts, dead_letters, committed, starts_late=starts_late)),
        {} if named is None else _count_versions(named),
        verdicts is not None,
    )


class _Rows:
    """Every input offset that matters, in the order of partition and offset: records in the log, and answered ones."""

    def __init__(self, inputs: Mapping[Place, InputPartition], outputs: Sequence[Output]) -> None:
        self.inputs = inputs
        self.places = tuple(sorted(inputs))
        self.since = [inputs[p].begin if (since := inputs[p].since) is None else since for p in self.places]
        offsets = []
        for place in self.places:
            partition = inputs[place]
            parts = [partition.records]
            for output in outputs:
                if place in output.places:
                    named = output.offset[output.place == output.places.index(place)]
                    parts.append(named[_was_record(named, partition)])
            offsets.append(np.unique(np.concatenate(parts)))
        self.starts = np.cumsum([0, *map(len, offsets)]).tolist()
        self.offset: NDArray[np.int64] = np.concatenate(offsets) if offsets else np.empty(0, dtype=np.int64)
        self.place = np.repeat(np.arange(len(offsets)), [len(part) for part in offsets])
        self.n = len(self.offset)
        held = [np.isin(part, inputs[p].records) for p, part in zip(self.places, offsets, strict=True)]
        self.is_held: NDArray[np.bool_] = np.concatenate(held) if held else np.empty(0, dtype=np.bool_)
        # Answers to what retention took from the input are checked among themselves, unless a part was asked for.
        self.is_checked = self.offset >= self.spread([inputs[place].since or 0 for place in self.places])

    def of(self, output: Output) -> NDArray[np.int64]:
        """Return the row of every entry; -1 where it names nothing that ever was a record."""
        row = np.full(len(output.offset), -1, dtype=np.int64)
        for index, place in enumerate(output.places):
            if place not in self.inputs:
                continue
            i = self.places.index(place)
            known = self.offset[self.starts[i] : self.starts[i + 1]]
            mine = np.flatnonzero(output.place == index)
            at = np.searchsorted(known, output.offset[mine])
            is_known = at < len(known)
            is_known[is_known] = known[at[is_known]] == output.offset[mine][is_known]
            row[mine[is_known]] = self.starts[i] + at[is_known]
        return row

    def spread(self, values: Sequence[int]) -> NDArray[np.int64]:
        """Return a value a partition as a value a row."""
        return np.asarray(values, dtype=np.int64)[self.place]

    def at(self, row: int) -> tuple[str, int, int]:
        """Return topic, partition and offset of a row."""
        return (*self.places[int(self.place[row])], int(self.offset[row]))


@dataclass(frozen=True)
class _Answers:
    """The entries of a topic with the rows that they answer; only those that the check is about are visible here."""

    output: Output
    row: NDArray[np.int64]
    is_visible: NDArray[np.bool_]
    """Of an entry: a reader of committed records got it, and it names a row that is checked."""
    n: NDArray[np.int64]
    """Of a row: how many visible entries it has."""
    is_open: NDArray[np.bool_]
    """Of a row: whether it has an entry whose transaction is still open."""

    @classmethod
    def of(cls, output: Output, rows: _Rows, found: _Found) -> _Answers:
        found.add(Kind.MALFORMED, output.n_malformed, output.malformed)
        row = rows.of(output)
        _check_known(output, row, rows, found)
        is_checked = row >= 0
        is_checked[is_checked] = rows.is_checked[row[is_checked]]
        is_visible = output.is_visible & is_checked
        is_open = np.zeros(rows.n, dtype=np.bool_)
        is_open[row[is_checked & ~output.is_visible & (output.fate == Fate.OPEN)]] = True
        n = np.bincount(row[is_visible], minlength=rows.n)
        return cls(output, row, is_visible, n, is_open)

    def horizon(self, rows: _Rows) -> NDArray[np.int64]:
        """Return, for each row, the offset before which an answer may have been there and been removed.

        The order is kept, so that what was removed answered earlier records than what is left.
        """
        if self.output.has_gaps:
            return rows.spread([_EVERYTHING] * len(rows.places))
        if not any(self.output.begins.values()):
            return rows.spread([0] * len(rows.places))
        is_answered = np.zeros(rows.n, dtype=np.bool_)
        is_answered[self.row[(self.row >= 0) & self.output.is_visible]] = True
        return _first_answers(rows, is_answered, rows.spread([_EVERYTHING] * len(rows.places)))


class _Found:
    """Findings as they come up."""

    def __init__(self, rows: _Rows) -> None:
        self._rows = rows
        self._n: dict[Kind, int] = {}
        self._examples: dict[Kind, list[Example]] = {}

    def add(self, kind: Kind, n: int, examples: Iterable[Example]) -> None:
        if n:
            self._n[kind] = self._n.get(kind, 0) + n
            listed = self._examples.setdefault(kind, [])
            listed.extend(example for example, _ in zip(examples, range(N_EXAMPLES - len(listed)), strict=False))

    def add_rows(self, kind: Kind, mask: NDArray[np.bool_], detail: str) -> None:
        rows = np.flatnonzero(mask)
        self.add(kind, len(rows), (Example(*self._rows.at(int(row)), detail) for row in rows[:N_EXAMPLES]))

    def add_entries(self, kind: Kind, answers: _Answers, mask: NDArray[np.bool_], detail: str) -> None:
        entries = np.flatnonzero(mask)
        self.add(kind, len(entries), (self.example(answers, int(entry), detail) for entry in entries[:N_EXAMPLES]))

    def example(self, answers: _Answers, entry: int, detail: str) -> Example:
        return Example(*self._rows.at(int(answers.row[entry])), f"{detail} ({lies_at(answers.output, entry)})")

    def n(self, kind: Kind) -> int:
        return self._n.get(kind, 0)

    def listed(self) -> tuple[Finding, ...]:
        return tuple(Finding(kind, self._n[kind], tuple(self._examples[kind])) for kind in Kind if kind in self._n)


def _copy(column: array[int], dtype: type[np.generic]) -> NDArray[Any]:
    """Return a column that no longer grows."""
    return np.array(column, dtype=dtype)


def lies_at(output: Output, entry: int) -> str:
    """Return where an entry lies, as people write it."""
    return f"{output.topic}-{output.to_partition[entry]} at {output.to_offset[entry]}"


def _was_record(offset: NDArray[np.int64], partition: InputPartition) -> NDArray[np.bool_]:
    """Return which offsets are or were a record of the partition."""
    never = np.isin(offset, partition.never)
    return (offset >= 0) & (offset < partition.end) & ~never


def _check_known(output: Output, row: NDArray[np.int64], rows: _Rows, found: _Found) -> None:
    """Find entries that answer what never was there. Only what a reader gets counts."""

    def examples(entries: Iterable[int]) -> Iterator[Example]:
        for entry in entries:
            place, offset = output.places[int(output.place[entry])], int(output.offset[entry])
            named = f"names {place[0]}-{place[1]}-{offset}"
            if place not in rows.inputs:
                why = f"{named}: no partition of the input"
            elif offset >= rows.inputs[place].end:
                why = f"{named}: the log ends at {rows.inputs[place].end}"
            else:
                why = f"{named}: there never was a committed record"
            yield Example(output.topic, int(output.to_partition[entry]), int(output.to_offset[entry]), why)

    unknown = np.flatnonzero((row < 0) & output.is_visible)
    found.add(Kind.UNEXPLAINED, len(unknown), examples(unknown[:N_EXAMPLES].tolist()))


def _check_visibility(answers: _Answers, found: _Found) -> None:
    """Compare what a reader got with what the broker's markers say."""
    output, is_row = answers.output, answers.row >= 0
    shown = is_row & output.is_visible & (output.fate != Fate.COMMITTED)
    found.add_entries(
        Kind.UNCOMMITTED_VISIBLE,
        answers,
        shown,
        "its transaction was not committed, and yet a read_committed reader gets it",
    )
    hidden = is_row & ~output.is_visible & (output.fate == Fate.COMMITTED)
    found.add_entries(
        Kind.COMMITTED_HIDDEN,
        answers,
        hidden,
        "its transaction was committed, and yet a read_committed reader does not get it",
    )


def _check_doubles(answers: _Answers, mode: Mode, rows: _Rows, found: _Found) -> None:
    """Find rows that one topic answers more than once."""
    output = answers.output
    entries = np.flatnonzero(answers.is_visible)
    entries = entries[answers.n[answers.row[entries]] > 1]
    if not len(entries):
        return
    entries = entries[np.lexsort((output.to_offset[entries], output.to_partition[entries]))]
    _, first, inverse = np.unique(answers.row[entries], return_index=True, return_inverse=True)
    n_more = len(entries) - len(first)

    def listed(doubled: Iterable[int], what: str) -> Iterator[Example]:
        for which in doubled:
            same = entries[inverse == which]
            versions = sorted(set(output.version[same].tolist()) - {NO_VERSION})
            by = f", by versions {', '.join(map(str, versions))}" if len(versions) > 1 else ""
            places = ", ".join(lies_at(output, int(entry)) for entry in same[:4])
            yield Example(*rows.at(int(answers.row[same[0]])), f"{what}{by} ({places})")

    some = range(min(len(first), N_EXAMPLES))
    if mode == "exactly_once":
        found.add(Kind.DOUBLED, n_more, listed(some, "answered more than once"))
        return
    found.add(Kind.REPEATED, n_more, listed(some, "answered more than once"))
    rescored = output.version[entries] != output.version[entries[first]][inverse]
    others = np.unique(inverse[rescored])[:N_EXAMPLES].tolist()
    found.add(Kind.RESCORED, int(np.count_nonzero(rescored)), listed(others, "answered more than once"))
    _, first_too, inverse_too = _grouped(inverse, output.version[entries])
    relabelled = output.mark[entries] != output.mark[entries[first_too]][inverse_too]
    others = np.unique(inverse[relabelled])[:N_EXAMPLES].tolist()
    found.add(
        Kind.RELABELLED,
        int(np.count_nonzero(relabelled)),
        listed(others, "answered more than once by one version, and records near it were marked normal meanwhile"),
    )
    _, first, inverse_too = _grouped(inverse_too, output.mark[entries])
    differs = output.digest[entries] != output.digest[entries[first]][inverse_too]
    others = np.unique(inverse[differs])[:N_EXAMPLES].tolist()
    found.add(
        Kind.DIFFERING,
        int(np.count_nonzero(differs)),
        listed(others, "answered more than once by one version, and not with the same bytes"),
    )


def _grouped(
    groups: NDArray[np.int64], values: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Part groups, numbered from 0, by a value too; returns what `np.unique` does of the parts."""
    some, which = np.unique(values, return_inverse=True)
    parts = np.unique(groups * len(some) + which, return_index=True, return_inverse=True)
    return parts[0], parts[1], parts[2]


def _judged_by_several(answers: Sequence[_Answers], n_rows: int) -> NDArray[np.bool_]:
    """Return, for each row, whether more than one version, or one with other labels, has answered it, in any topic."""
    judged = np.zeros(n_rows, dtype=np.bool_)
    for name in ("version", "mark"):
        least, most = np.full(n_rows, _EVERYTHING), np.full(n_rows, -1, dtype=np.int64)
        for one in answers:
            row, value = one.row[one.is_visible], getattr(one.output, name)[one.is_visible]
            np.minimum.at(least, row, value)
            np.maximum.at(most, row, value)
        judged |= least < most
    return judged


def _check_order(
    answers: _Answers, rows: _Rows, found: _Found, *, passed_over: NDArray[np.bool_] | None = None
) -> None:
    """Find first answers that lie behind the answer to a later record of their partition, in one output partition."""
    output = answers.output
    entries = np.flatnonzero(answers.is_visible)
    if passed_over is not None:
        entries = entries[~passed_over[answers.row[entries]]]
    if not len(entries):
        return
    row, to_partition = answers.row[entries], output.to_partition[entries]
    place = rows.place[row]
    order = np.lexsort((output.to_offset[entries], to_partition, place))
    entries, row, to_partition, place = entries[order], row[order], to_partition[order], place[order]
    is_new = np.append(True, (place[1:] != place[:-1]) | (to_partition[1:] != to_partition[:-1]))
    # A stretch of one input partition in one output partition comes before the next, whatever the rows: one running
    # maximum serves them all.
    rank = np.cumsum(is_new) * rows.n + row
    before = np.append(-1, np.maximum.accumulate(rank)[:-1])
    is_first = np.zeros(len(rank), dtype=np.bool_)
    is_first[np.unique(rank, return_index=True)[1]] = True
    late = np.zeros(len(output.offset), dtype=np.bool_)
    late[entries[is_first & (rank < before)]] = True
    found.add_entries(Kind.OUT_OF_ORDER, answers, late, "lies behind the answer to a later record")

    stretches = np.bincount(place[is_new], minlength=len(rows.places))
    spread = np.flatnonzero(stretches > 1)
    found.add(
        Kind.SPREAD,
        len(spread),
        (
            Example(*rows.places[i], rows.since[i], f"answered in {stretches[i]} partitions of {output.topic}")
            for i in spread.tolist()
        ),
    )


def _check_alerts(
    verdicts: _Answers, alerted: _Answers, is_passed: NDArray[np.bool_], rows: _Rows, found: _Found
) -> None:
    """Compare the alerts with the flagged verdicts; what the group has not passed may be on its way."""
    flagged = np.zeros(rows.n, dtype=np.bool_)
    flagged[verdicts.row[verdicts.is_visible & verdicts.output.is_flagged]] = True
    is_settled = is_passed & ~verdicts.is_open & ~alerted.is_open
    found.add_rows(
        Kind.ALERT_MISSING,
        flagged & (alerted.n == 0) & is_settled & (rows.offset >= alerted.horizon(rows)),
        "is flagged, and there is no alert",
    )
    found.add_rows(
        Kind.ALERT_UNEXPLAINED,
        ~flagged & (alerted.n > 0) & is_settled & (rows.offset >= verdicts.horizon(rows)),
        "has an alert, and no verdict that is flagged",
    )
    is_compared = alerted.is_visible.copy()
    is_compared[is_compared] = (flagged & is_settled)[alerted.row[is_compared]]
    same = np.isin(_mixed(alerted), _mixed(verdicts)[verdicts.is_visible])
    found.add_entries(Kind.ALERT_DIFFERS, alerted, is_compared & ~same, "the alert is not its verdict, byte for byte")


def _mixed(answers: _Answers) -> NDArray[np.uint64]:
    """Return digest and row as one number (the factor is 2^64 over the golden ratio, as in Fibonacci hashing)."""
    return answers.output.digest ^ (answers.row.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _first_answers(rows: _Rows, is_answered: NDArray[np.bool_], otherwise: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for each row, the first answered offset of its partition; `otherwise` where there is none."""
    first = np.full(len(rows.places), _EVERYTHING, dtype=np.int64)
    np.minimum.at(first, rows.place[is_answered], rows.offset[is_answered])
    mine = first[rows.place]
    return np.where(mine == _EVERYTHING, otherwise, mine)


def _last_answers(rows: _Rows, is_answered: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return, for each row, the last answered offset of its partition, -1 where there is none."""
    last = np.full(len(rows.places), -1, dtype=np.int64)
    np.maximum.at(last, rows.place[is_answered], rows.offset[is_answered])
    return last[rows.place]


def _count_versions(answers: _Answers) -> dict[int, int]:
    versions, counts = np.unique(answers.output.version[answers.is_visible], return_counts=True)
    return {int(v): int(n) for v, n in zip(versions, counts, strict=True) if v != NO_VERSION}


def _notes(
    rows: _Rows,
    scores: Output | None,
    alerts: Output | None,
    dead_letters: Output,
    committed: Mapping[Place, int],
    *,
    starts_late: bool,
) -> Iterator[str]:
    if scores is None:
        yield (
            "output.scores_topic is not set: records that are not flagged leave no trace, so whether every record was "
            "answered cannot be checked; checked were the alerts and the dead letters alone"
        )
    for place in rows.places:
        if place not in committed:
            yield f"{place[0]}-{place[1]}: the group has committed nothing, so nothing unanswered counts as lost"
        elif committed[place] > rows.inputs[place].end:
            yield (
                f"{place[0]}-{place[1]}: the group goes on at {committed[place]}, and the log ends at "
                f"{rows.inputs[place].end}; was the topic made anew?"
            )
    for output in (scores, alerts, dead_letters):
        if output is not None and output.has_gaps:
            yield f"{output.topic}: is compacted, so a missing answer cannot be told from a removed one"
        elif output is not None and any(output.begins.values()):
            yield f"{output.topic}: its beginning was removed, so answers to the earliest records may be missing"
    if starts_late and scores is not None:
        yield "input.start is latest: what lies before a partition's first answer was never promised"
