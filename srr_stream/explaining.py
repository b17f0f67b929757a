"""Everything that can be said of one record: read from the log again, judged again, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consumers.decoding import Decoder
from consumers.errors import ConsumersError
from consumers.records import Batch, Contribution, RawRecord, event_id
from consumers.sinks.serialization import readable, timestamp
from srr_stream.errors import NoRecord
from srr_stream.labels import Label, place_of
from srr_stream.record_reader import RecordReader
from srr_stream.training_record import load_refinement, nearest_normals

if TYPE_CHECKING:
    from srr_stream.live_model import Live
    from srr_stream.model_shelf import ModelShelf
    from srr_stream.registry import Registry

N_NEAREST = 5


@dataclass(frozen=True)
class InWindow:
    """What the training of the version did with the record."""

    was_in: bool
    """Whether it was in the window."""
    was_excluded: bool | None = None
    """Whether refinement threw it out; None: the version does not tell."""
    n_votes: int | None = None
    """Members of the ensemble that rejected it."""
    n_members: int | None = None


@dataclass(frozen=True)
class Near:
    """A normal record of the training that is like it."""

    id: str
    distance: float
    """In the space in which the model compares: scaled fields, or the embedding of a picture."""
    record: str | None
    """As text; None if the log does not hold it any more, or it is a picture."""


@dataclass(frozen=True)
class Explanation:
    """All that is known of a record and a version."""

    id: str
    key: str | None
    time: str
    version: int
    representation: str
    is_live: bool
    score: float
    base_score: float
    """Of the mean of the refined rows; with the contributions it sums to the score."""
    p_value: float
    severity: float
    flagged: bool
    false_alarm_rate: float
    contributions: tuple[Contribution, ...]
    """Of every field, greatest first."""
    window: InWindow
    nearest: tuple[Near, ...]
    why_no_nearest: str | None
    label: Label | None
    record: str | None
    """As text; None of a picture."""


def explain(
    id: str,
    *,
    reader: RecordReader,
    decoder: Decoder,
    shelf: ModelShelf,
    registry: Registry,
    version: int | None = None,
    live_version: int | None = None,
    labels: Mapping[str, Label] | None = None,
) -> Explanation:
    """Explain a record by a version, by the live one if None.

    Raises
    ------
    NoRecord
        If the id is none, the log does not hold the record, or no longer, or it is a dead letter: with the reason.
    NoModel
        If the version cannot be had.
    ConsumersError, RegistryError
        If the log or the registry cannot be read.
    """
    try:
        place = place_of(id)
    except ValueError as error:
        raise NoRecord(str(error)) from error
    raw = reader.read(*place)
    decoded = decoder.decode([raw])
    if decoded.bad:
        bad = decoded.bad[0]
        raise NoRecord(f"{id} is a dead letter, no model has judged it: {bad.reason}: {bad.detail}")
    live, batch = shelf.get(version), decoded.batch
    model = live.model
    scores = model.score(batch.features)
    parts = model.explain(batch.features, n_top=len(model.fields))[0]
    nearest, why_not = _nearest(registry, live, batch, reader)
    return Explanation(
        id=event_id(raw),
        key=readable(raw.key),
        time=timestamp(int(batch.time_ms[0])),
        version=live.version,
        representation=model.representation_name,
        is_live=live.version == live_version,
        score=float(scores.score[0]),
        base_score=float(model.contributions(batch.features).base),
        p_value=float(scores.p_value[0]),
        severity=float(scores.severity[0]),
        flagged=bool(scores.flagged[0]),
        false_alarm_rate=model.false_alarm_rate,
        contributions=tuple(Contribution(*part) for part in parts),
        window=_in_window(registry, live, place),
        nearest=nearest,
        why_no_nearest=why_not,
        label=(labels or {}).get(id),
        record=_text(raw),
    )


def _in_window(registry: Registry, live: Live, place: tuple[str, int, int]) -> InWindow:
    topic, partition, offset = place
    ranges: list[Mapping[str, Any]] = live.manifest.window["ranges"]
    if not any((r["topic"], r["partition"]) == (topic, partition) and r["start"] <= offset < r["stop"] for r in ranges):
        return InWindow(False)
    refinement = load_refinement(registry, live.version)
    if refinement is None:
        return InWindow(True)
    for each in refinement.excluded:
        if (each.topic, each.partition, each.offset) == place:
            return InWindow(True, True, each.votes, refinement.n_subsets)
    is_whole = refinement.n_excluded <= len(refinement.excluded)
    return InWindow(True, False if is_whole else None, None, refinement.n_subsets)


def _nearest(registry: Registry, live: Live, batch: Batch, reader: RecordReader) -> tuple[tuple[Near, ...], str | None]:
    """Return the normal records of the training that are most like one, and why if there are none."""
    (point,) = live.model.coordinates(batch.features)
    found, why_not = nearest_normals(registry, live.version, point, N_NEAREST)
    return tuple(Near(id, distance, _read(reader, place)) for id, place, distance in found), why_not


def _read(reader: RecordReader, place: tuple[str, int, int]) -> str | None:
    try:
        return _text(reader.read(*place))
    except (NoRecord, ConsumersError):
        return None


def _text(raw: RawRecord) -> str | None:
    """Return a record that is text as it is, on one line."""
    value = (raw.value or b"").strip()
    if not value.startswith(b"{"):  # it was decoded and is no JSON object: a picture
        return None
    return value.decode("utf-8", "replace").replace("\n", " ").replace("\r", " ")
