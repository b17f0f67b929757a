"""The desk: what the API and the page can do, one method each; plain data out, problems as :class:`DeskError`.

It wires; each answer is made in its own room: the index of flagged records (:mod:`srr_stream.flagged`), what the
scorers say (:mod:`srr_stream.web.states`), models (:mod:`srr_stream.web.model_views`), single records
(:mod:`srr_stream.web.details`). Methods wait for disks, brokers and other processes: call them from a thread that may.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from consumers.errors import ConsumersError
from consumers.records import RawRecord
from consumers.sinks.serialization import timestamp
from srr_stream.errors import ModelRefused, NoHeatMap, NoModel, NoRecord, RegistryError, SrrStreamError
from srr_stream.flagged import FlaggedIndex, IndexUnusable
from srr_stream.web.details import Details
from srr_stream.web.model_views import in_use, model_row, model_view, refinement_view
from srr_stream.web.problems import DeskError
from srr_stream.web.states import Answers, describe, merged_history
from srr_stream.web.views import (
    DeskStatus,
    Facets,
    Flagged,
    FlaggedDetail,
    FlaggedPage,
    FlaggedQuery,
    HistoryView,
    InUse,
    LabelSummaryView,
    LabelView,
    ModelRow,
    ModelView,
    RecordView,
    RefinementView,
)

if TYPE_CHECKING:
    from srr_stream.heat_maps import HeatMap
    from srr_stream.labels import Label, LabelSummary
    from srr_stream.live_model import LiveModel
    from srr_stream.registry import Registry

MAX_LABELS = 200
"""Records that one call labels: each is read from the log."""
_NO_LABELS = "there is no topic for labels; create one, name it as labels.topic, and start again"
_HEARD_S = 2.0
"""How long a label that was written is waited for, until it has come back from its topic."""


class Book(Protocol):
    """The labels as they stand: :class:`srr_stream.labels.LabelBook`."""

    def update(self, raw_records: Sequence[RawRecord]) -> None: ...  # noqa: D102
    def get(self, event_id: str) -> Label | None: ...  # noqa: D102
    def all(self) -> Sequence[Label]: ...  # noqa: D102
    def summary(self, false_alarm_rate: float) -> LabelSummary: ...  # noqa: D102


class Writer(Protocol):
    """Where labels are written to: :class:`srr_stream.labels.LabelTopic`."""

    def write(self, labels: Sequence[Label]) -> None: ...  # noqa: D102
    def remove(self, ids: Sequence[str]) -> None: ...  # noqa: D102


class Desk:
    """Everything that people and programs can see and do.

    Every method may be called from any thread, raises :class:`DeskError` with a reason for whoever asked, and answers
    before the first model too.

    Parameters
    ----------
    index
        Of the flagged records.
    registry, live_model
        Of the models; `live_model` is this process's own copy of the champion.
    details
        Reads single records and explains them.
    ask
        Called for what the scorers and the trainer say of themselves, with whether their history is wanted.
    book, writer
        Labels as they stand, and where they are written; both None: there are no labels.
    false_alarm_rate
        α in use.
    problems
        Called for what is wrong with the topics that are followed, a line each.
    """

    def __init__(
        self,
        *,
        index: FlaggedIndex,
        registry: Registry,
        live_model: LiveModel,
        details: Details,
        ask: Callable[[bool], Answers],
        book: Book | None = None,
        writer: Writer | None = None,
        false_alarm_rate: float = 0.005,
        problems: Callable[[], Sequence[str]] = tuple,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._index = index
        self._registry = registry
        self._live_model = live_model
        self._details = details
        self._ask = ask
        self._book = book
        self._writer = writer
        self._false_alarm_rate = false_alarm_rate
        self._problems = problems
        self._clock = clock
        self._heard = threading.Condition()

    # --- status -----------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return what time it is here, in seconds since 1970."""
        return self._clock()

    def status(self) -> DeskStatus:
        """Return the state of everything, in words too; never waits long for a scorer that does not answer."""
        problems = list(self._problems())
        if self._live_model.problem is not None:
            problems.append(self._live_model.problem)
        if self._index.problem is not None:
            problems.append(self._index.problem)
        return describe(
            self._ask(False),
            n_in_index=self._index.n_records,
            has_labels=self.has_labels,
            problems=tuple(problems),
            at=self._clock(),
        )

    def history(self) -> HistoryView:
        """Return severity over time, of all scorers together, with swaps and trainings."""
        rows, problem = [], None
        try:
            rows = [row for row in self._rows() if row.problem is None]
        except DeskError as error:
            problem = error.detail
        return merged_history(self._ask(True), rows, problem=problem)

    # --- flagged records --------------------------------------------------------------------------------------------

    def flagged(self, query: FlaggedQuery) -> FlaggedPage:
        """Return a page of the flagged records.

        A page stays where it is while new records come in: what was on the page before is never on the next one.

        Raises
        ------
        DeskError
            invalid: the cursor is none, or of another order; not_ready: the index cannot be read.
        """
        with _told():
            return self._index.find(query)

    def facets(self) -> Facets:
        """Return what there is to filter by."""
        with _told():
            return self._index.facets()

    def flagged_one(self, id: str) -> FlaggedDetail:
        """Return everything about a flagged record; what cannot be had says why.

        Raises
        ------
        DeskError
            not_found: it is not in the index.
        """
        flagged = self._flagged(id)
        label = self._book.get(id) if self._book is not None else None
        detail = self._details.of(flagged)
        if label is None:
            return detail
        return replace(detail, note=label.note, author=label.author, labelled_at=datetime.fromisoformat(label.at))

    def flagged_row(self, id: str) -> Flagged | None:
        """Return a flagged record as the list has it, None if it is not in the index."""
        with _told():
            return self._index.get(id)

    def record(self, id: str) -> RecordView:
        """Return a record of the input topics, flagged or not; what cannot be had says why."""
        return self._details.record(id)

    def picture(self, id: str) -> bytes:
        """Return the picture of a record as the model sees it, a PNG.

        Raises
        ------
        DeskError
            not_found, no_picture, not_ready.
        """
        with _told():
            return self._details.picture(id)

    def heat_map(self, id: str) -> HeatMap:
        """Return the heat map of a picture, by the version that flagged it, else by the live one.

        Raises
        ------
        DeskError
            not_found, no_picture, not_ready.
        """
        with _told():
            flagged = self._index.get(id)
            return self._details.heat_map(id, flagged.version if flagged is not None else None)

    # --- scoring ----------------------------------------------------------------------------------------------------

    def score(self, records: Sequence[bytes]) -> list[dict[str, Any]]:
        """Judge records by the live model; nothing is published.

        Returns
        -------
        list of dict
            For each record, in order: ``index`` and either what its verdict says (``score``, ``p_value``, ``severity``,
            ``flagged``, ``version``, ``reasons``) or ``problem`` with the ``reason`` and ``detail`` of a dead letter.

        Raises
        ------
        DeskError
            not_ready: there is no model yet.
        """
        with _told():
            return self._details.score(records)

    # --- models -----------------------------------------------------------------------------------------------------

    def models(self) -> tuple[ModelRow, ...]:
        """Return all versions, newest first."""
        return tuple(reversed(self._rows()))

    def model(self, version: int) -> ModelView:
        """Return what is known of a version.

        Raises
        ------
        DeskError
            not_found; conflict: it is refused, and why.
        """
        with _told():
            self._check_version(version)
            pointer = self._registry.pointer()
            return model_view(self._registry.manifest(version), self._registry.sizes().get(version, 0), pointer)

    def in_use(self) -> InUse:
        """Return which versions are in use."""
        with _told():
            return in_use(self._registry.pointer())

    def promote(self, version: int, reason: str = "promoted by hand") -> InUse:
        """Make a version the champion; scorers swap within ``registry.poll_every``.

        Raises
        ------
        DeskError
            not_found; conflict: it is damaged.
        """
        with _told():
            self._check_version(version)
            return in_use(self._registry.promote(version, reason=reason))

    def rollback(self, reason: str = "rolled back by hand") -> InUse:
        """Make the previous champion the champion again.

        Raises
        ------
        DeskError
            conflict: there is none, or it was rolled back itself.
        """
        with _told():
            before = in_use(self._registry.pointer())
            if not before.can_roll_back:
                raise DeskError("conflict", detail=_why_no_rollback(before))
            return in_use(self._registry.rollback(reason=reason, version=before.champion))

    def request_training(self, reason: str = "asked for by hand") -> None:
        """Ask the trainer, wherever it runs, for a training."""
        with _told():
            self._registry.request_training(reason)

    def refinement(self, version: int | None = None) -> RefinementView:
        """Return what the refinement of a version's window left out; of the champion's if None.

        Raises
        ------
        DeskError
            not_found: there is no such version, or it has kept nothing of it; not_ready: there is no model yet.
        """
        with _told():
            if version is None:
                version = self._registry.pointer().champion
                if version is None:
                    raise DeskError("not_ready", detail="there is no model yet, and so nothing was refined")
            self._check_version(version)
            label_of = self._book.get if self._book is not None else lambda id: None
            return refinement_view(self._registry, version, label_of)

    # --- labels -----------------------------------------------------------------------------------------------------

    @property
    def has_labels(self) -> bool:
        """Whether there is a topic for labels."""
        return self._book is not None and self._writer is not None

    def label(self, ids: Sequence[str], label: str, note: str = "", author: str = "") -> tuple[LabelView, ...]:
        """Say of records what they are; a label replaces the one before.

        Records that were not flagged may be labelled too, if the log still holds them.

        Raises
        ------
        DeskError
            no_labels_topic; not_found: one is neither in the index nor in the log, then none is labelled; invalid: too
            many, a note too long, or no such label; not_ready: they could not be written.
        """
        _, writer = self._labels()
        unique = self._checked_ids(ids)
        try:
            at = datetime.fromtimestamp(self._clock(), UTC)
            made = [self._make_label(id, label, note, author, at) for id in unique]
        except ValueError as error:
            raise DeskError("invalid", detail=str(error)) from error
        with _told():
            writer.write(made)
        self._wait_until_heard({label.id: label for label in made})
        return tuple(map(_label_view, made))

    def unlabel(self, ids: Sequence[str]) -> int:
        """Take labels back and return how many there were.

        Raises
        ------
        DeskError
            no_labels_topic; not_found: none of them has one; not_ready: it could not be written.
        """
        book, writer = self._labels()
        there = [id for id in self._checked_ids(ids) if book.get(id) is not None]
        if not there:
            raise DeskError("not_found", detail=f"none of these records has a label: {', '.join(ids)[:200]}")
        with _told():
            writer.remove(there)
        self._wait_until_heard(dict.fromkeys(there))
        return len(there)

    def labels(self) -> tuple[LabelView, ...]:
        """Return all labels, newest first; raises no_labels_topic."""
        book, _ = self._labels()
        return tuple(map(_label_view, reversed(book.all())))

    def label_of(self, id: str) -> LabelView | None:
        """Return what was said of a record, None if nothing was."""
        label = self._book.get(id) if self._book is not None else None
        return None if label is None else _label_view(label)

    def label_summary(self) -> LabelSummaryView:
        """Return all labels in numbers; raises no_labels_topic."""
        book, _ = self._labels()
        return LabelSummaryView(**asdict(book.summary(self._false_alarm_rate)))

    def set_false_alarm_rate(self, false_alarm_rate: float) -> None:
        """Go by another α from now on."""
        self._false_alarm_rate = false_alarm_rate

    def hear_labels(self, records: Sequence[RawRecord]) -> None:
        """Take what came from the labels topic; for the thread that follows it.

        Raises
        ------
        IndexUnusable
            If the index cannot be written: give them again.
        """
        book, _ = self._labels()
        book.update(records)
        ids = {record.key.decode(errors="replace") for record in records if record.key is not None}
        labels = {id: book.get(id) for id in ids}
        self._index.set_labels({id: label.label if label is not None else None for id, label in labels.items()})
        with self._heard:
            self._heard.notify_all()

    # ----------------------------------------------------------------------------------------------------------------

    def _flagged(self, id: str) -> Flagged:
        with _told():
            found = self._index.get(id)
        if found is None:
            raise DeskError(
                "not_found", detail=f"record {id} is not among the flagged ones; the newest {self._index.keep} are kept"
            )
        return found

    def _rows(self) -> list[ModelRow]:
        with _told():
            pointer = self._registry.pointer()
            sizes = self._registry.sizes()
            return [model_row(self._registry, version, sizes[version], pointer) for version in sorted(sizes)]

    def _check_version(self, version: int) -> None:
        there = self._registry.versions()
        if version not in there:
            named = ", ".join(map(str, there)) or "none yet"
            raise DeskError("not_found", detail=f"there is no version {version} in the registry; there are {named}")

    def _labels(self) -> tuple[Book, Writer]:
        if self._book is None or self._writer is None:
            raise DeskError("no_labels_topic", detail=_NO_LABELS)
        return self._book, self._writer

    def _checked_ids(self, ids: Sequence[str]) -> list[str]:
        unique = list(dict.fromkeys(ids))
        if not 1 <= len(unique) <= MAX_LABELS:
            raise DeskError("invalid", detail=f"{len(unique)} records at once; allowed: 1 to {MAX_LABELS}")
        return unique

    def _make_label(self, id: str, label: str, note: str, author: str, at: datetime) -> Label:
        """Return a label with the verdict that the person saw and, if the log still has it, the record."""
        from srr_stream.labels import Label, place_of

        topic, partition, offset = place_of(id)
        with _told():
            flagged = self._index.get(id)
        try:
            raw = self._details.raw(id)
        except (NoRecord, ConsumersError) as error:
            if flagged is None:
                raise _not_found_or_away(error) from error
            raw = None
        if flagged is not None:
            verdict: tuple[int | None, float | None, float | None] = flagged.version, flagged.p_value, flagged.severity
        else:
            verdict = (raw is not None and self._details.verdict(raw)) or (None, None, None)
        return Label(
            id,
            label,  # type: ignore[arg-type]  # it checks that
            note,
            author,
            timestamp(int(at.timestamp() * 1000)),
            *verdict,
            topic,
            partition,
            offset,
            raw.value if raw is not None else None,
        )

    def _wait_until_heard(self, labels: Mapping[str, Label | None]) -> None:
        """Return when the labels have come back from their topic, so that whoever asks next sees them; not for long."""
        book, _ = self._labels()

        def is_heard() -> bool:
            return all(_same(book.get(id), label) for id, label in labels.items())

        with self._heard:
            self._heard.wait_for(is_heard, timeout=_HEARD_S)


def _same(a: Label | None, b: Label | None) -> bool:
    return (a.label, a.note, a.at) == (b.label, b.note, b.at) if a is not None and b is not None else a is b


def _not_found_or_away(error: Exception) -> DeskError:
    return DeskError("not_found" if isinstance(error, NoRecord) else "not_ready", detail=str(error))


def _label_view(label: Label) -> LabelView:
    at = datetime.fromisoformat(label.at)
    return LabelView(label.id, label.label, label.note, label.author, at, label.version, label.severity)


def _why_no_rollback(now: InUse) -> str:
    if now.previous is None:
        return "there is no previous version to roll back to"
    why = now.reason or "no reason given"
    return f"version {now.previous} was rolled back itself ({why}); promote it to bring it back"


@contextmanager
def _told() -> Iterator[None]:
    """Turn this application's errors into problems."""
    try:
        yield
    except DeskError:
        raise
    except NoHeatMap as error:
        raise DeskError(error.reason, detail=str(error)) from error
    except NoRecord as error:
        raise DeskError("not_found", detail=str(error)) from error
    except NoModel as error:
        raise DeskError("conflict" if error.reason == "refused" else error.reason, detail=str(error)) from error
    except ModelRefused as error:
        raise DeskError("conflict", detail=f"refused ({error.reason}): {error}") from error
    except (RegistryError, ConsumersError, IndexUnusable) as error:
        raise DeskError("not_ready", detail=str(error)) from error
    except SrrStreamError as error:
        raise DeskError("conflict", detail=str(error)) from error
