"""What the desk shows: plain data, frozen, ready to be drawn or turned into JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

_CONFIG = ConfigDict(use_attribute_docstrings=True)
"""The sentence below a field is its description in the API's document."""
State = Literal["empty", "warming_up", "holding", "scoring", "lagging", "broker_away", "unreachable"]
LabelName = Literal["anomaly", "normal", "unsure"]
LabelFilter = Literal["none", "anomaly", "normal", "unsure"]
Sort = Literal["time", "severity"]

# --- status


@dataclass(frozen=True, config=_CONFIG)
class PartitionLag:
    """Records of a partition that are not read yet."""

    topic: str
    partition: int
    records: int


@dataclass(frozen=True, config=_CONFIG)
class ScorerState:
    """What a scorer says of itself, or that it says nothing."""

    url: str
    is_reachable: bool
    reason: str
    """What it is about or waits for; of one that is not reached: why."""
    is_live: bool = False
    is_ready: bool = False
    trouble: str | None = None
    """Why its connection is being made anew: broker, sink, membership, topic, rights; None while there is none."""
    package: str | None = None
    model_version: int | None = None
    loaded_at: float | None = None
    """Seconds since 1970, as everywhere here."""
    n_assigned: int = 0
    lag: tuple[PartitionLag, ...] = ()
    n_scored: int = 0
    n_flagged: int = 0
    n_dead_lettered: int = 0
    last_scored_at: float | None = None
    records_per_s: float | None = None
    """Mean of the last minute."""


@dataclass(frozen=True, config=_CONFIG)
class TrainerState:
    """What the trainer says of itself, or that it says nothing."""

    url: str
    is_reachable: bool
    reason: str
    is_live: bool = False
    is_ready: bool = False
    phase: str = "unknown"
    """starting, waiting, reading, training, judging, publishing, resting; unknown: it is not reached."""
    detail: str = ""
    n_records: int = 0
    """Records in the log, up to `n_wanted`."""
    n_wanted: int = 0
    step: int = 0
    n_steps: int = 0
    excluded_ratio: float | None = None


@dataclass(frozen=True, config=_CONFIG)
class DeskStatus:
    """Everything at a glance: a state, and the sentence that says it."""

    state: State
    sentence: str
    scorers: tuple[ScorerState, ...]
    trainer: TrainerState
    live_version: int | None
    live_since: float | None
    lag: int
    """Records not read yet, of all scorers."""
    n_scored: int
    n_flagged: int
    flagged_ratio: float | None
    """Since the scorers' start; None before the first record."""
    records_per_s: float | None
    n_in_index: int
    """Flagged records that can be listed."""
    has_labels: bool
    problems: tuple[str, ...]
    """What is wrong though answers are given, a line each: a topic that is missing, a registry that cannot be read."""
    at: float
    """When this was found out."""


# --- flagged records


@dataclass(frozen=True, config=_CONFIG)
class Reason:
    """A field's part in a score, with what was seen and what the other fields led to expect."""

    field: str
    contribution: float
    observed: float | str | None
    expected: float | str | None


@dataclass(frozen=True, config=_CONFIG)
class Flagged:
    """A flagged record as its verdict has it, with what people said of it."""

    id: str
    """topic-partition-offset."""
    topic: str
    partition: int
    offset: int
    key: str | None
    time: datetime
    """The record's own, in UTC."""
    score: float
    p_value: float
    severity: float
    """1.0 is the boundary for every model; higher is less usual."""
    version: int
    """Of the model that flagged it."""
    headline: str
    """The reason in a line: ``amount 9,140 where 35 was expected``."""
    reasons: tuple[Reason, ...]
    """Greatest first."""
    is_picture: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the record has beside its picture."""
    label: str | None = None
    """anomaly, normal, unsure; None: nobody has said."""


@dataclass(frozen=True, config=_CONFIG)
class FlaggedQuery:
    """Which flagged records, in which order, and which page of them. All that is given must hold."""

    topic: str | None = None
    since: datetime | None = None
    """At or after, by the record's own time; with a time zone."""
    until: datetime | None = None
    """Before."""
    min_severity: float | None = None
    field: str | None = None
    """Among the fields of the reasons."""
    version: int | None = None
    label: LabelFilter | None = None
    """none: not labelled yet; None: whatever the label."""
    text: str | None = None
    """Somewhere in id, key, headline or metadata, in whatever case."""
    sort: Sort = "time"
    """Newest first, or most severe first."""
    cursor: str | None = None
    """`next_cursor` of the page before."""
    limit: int = 50
    """1 to 500."""


@dataclass(frozen=True, config=_CONFIG)
class FlaggedPage:
    """Some flagged records in order, and where the next ones begin."""

    items: tuple[Flagged, ...]
    next_cursor: str | None
    """None: there are no more."""
    n_total: int
    """Of all pages."""


@dataclass(frozen=True, config=_CONFIG)
class Facets:
    """What there is to filter by."""

    topics: tuple[str, ...]
    fields: tuple[str, ...]
    versions: tuple[int, ...]
    """Newest first."""


@dataclass(frozen=True, config=_CONFIG)
class RecordView:
    """A record read from the log: its readable JSON, or why there is none."""

    record: Any | None
    """As JSON; base64 of long texts and of pictures is cut out and its size told instead."""
    problem: str | None = None


@dataclass(frozen=True, config=_CONFIG)
class Neighbour:
    """A normal record of the training that is like the flagged one."""

    id: str
    distance: float
    """In the space where the model compares."""
    record: Any | None
    problem: str | None = None
    """Why its record cannot be shown."""


@dataclass(frozen=True, config=_CONFIG)
class FlaggedDetail:
    """Everything about a flagged record. What cannot be had is None or empty, and the problem beside says why."""

    flagged: Flagged
    record: Any | None
    record_problem: str | None
    contributions: tuple[Reason, ...]
    """Of all fields, greatest first."""
    contributions_problem: str | None
    explained_by: int | None
    """The version that explains: the one that flagged, or the live one if that is gone."""
    nearest: tuple[Neighbour, ...]
    """Nearest first."""
    nearest_problem: str | None
    is_picture: bool
    note: str = ""
    """Of its label."""
    author: str | None = None
    labelled_at: datetime | None = None


# --- models


@dataclass(frozen=True, config=_CONFIG)
class CheckView:
    """One thing that the gate looked at."""

    name: str
    value: float
    bound: str
    """What was allowed, in words; empty: only reported."""
    passed: bool
    advice: str = ""


@dataclass(frozen=True, config=_CONFIG)
class ModelRow:
    """A version in the list of all."""

    version: int
    role: str | None
    """champion, previous, challenger, "previous, rolled back"; None: not in use."""
    size: int
    """Bytes."""
    problem: str | None = None
    """Why it is refused; then nothing else is known."""
    created_at: str | None = None
    """ISO 8601."""
    reason: str | None = None
    """Why it was trained."""
    representation: str | None = None
    n_records: int | None = None
    """Of its window."""
    excluded_ratio: float | None = None
    contamination_ratio: float | None = None
    passed: bool | None = None
    """Whether it passed the gate."""
    decision: str | None = None
    """The gate's reason, in words."""
    checks: tuple[CheckView, ...] = ()


@dataclass(frozen=True, config=_CONFIG)
class RangeView:
    """Offsets of a partition that a window took: `start` ≤ offset < `stop`."""

    topic: str
    partition: int
    start: int
    stop: int


@dataclass(frozen=True, config=_CONFIG)
class ModelView:
    """All that people want to know of a version."""

    row: ModelRow
    window: tuple[RangeView, ...]
    facts: Mapping[str, Any]
    """Name → value: window, training, model, files, libraries, as ``srr-stream models show`` says them."""


@dataclass(frozen=True, config=_CONFIG)
class InUse:
    """Which versions are in use."""

    champion: int | None
    previous: int | None
    challenger: int | None
    reason: str | None
    """Why the champion is the champion."""
    at: str | None
    """Since when, ISO 8601."""
    can_roll_back: bool
    """Whether there is a version to go back to."""


@dataclass(frozen=True, config=_CONFIG)
class ExcludedRow:
    """A row of a window that refinement took out."""

    id: str
    topic: str
    partition: int
    offset: int
    votes: int
    """Members of the ensemble that took it for an anomaly."""
    label: str | None = None


@dataclass(frozen=True, config=_CONFIG)
class RefinementView:
    """What the refinement of a version's window left out."""

    version: int
    gamma: float
    """Share that each member rejects."""
    rows_by_votes: tuple[int, ...]
    """Index: how many members rejected a row, 0 to K; value: how many such rows."""
    n_rows: int
    n_excluded: int
    rows: tuple[ExcludedRow, ...]
    """Most votes first; at most 2,000 are kept."""


# --- time


@dataclass(frozen=True, config=_CONFIG)
class HistoryPoint:
    """Ten seconds of scoring."""

    at: float
    """Beginning."""
    n: int
    n_flagged: int
    max_severity: float | None
    """None: nothing was scored."""
    version: int | None


@dataclass(frozen=True, config=_CONFIG)
class Swap:
    """A model became live."""

    at: float
    version: int


@dataclass(frozen=True, config=_CONFIG)
class Training:
    """A model was published."""

    at: float
    version: int
    reason: str
    passed: bool | None


@dataclass(frozen=True, config=_CONFIG)
class HistoryView:
    """Severity over time, with what changed meanwhile."""

    bucket_s: float
    points: tuple[HistoryPoint, ...]
    """Oldest first; where nothing was scored there is no point."""
    swaps: tuple[Swap, ...]
    trainings: tuple[Training, ...]
    problem: str | None = None
    """Why a part of it is missing."""


# --- labels


@dataclass(frozen=True, config=_CONFIG)
class LabelView:
    """What somebody said of a record."""

    id: str
    label: LabelName
    note: str
    author: str
    at: datetime
    version: int | None
    severity: float | None


@dataclass(frozen=True, config=_CONFIG)
class LabelSummaryView:
    """All labels in numbers."""

    n_anomaly: int
    n_normal: int
    n_unsure: int
    precision: float | None
    """Share of anomalies among what is labelled anomaly or normal; None: too few to say."""
    suggested_rate: float | None
    """A ``threshold.false_alarm_rate`` that would have spared the false alarms."""
    why: str
    """What the two say, or why they are missing."""
