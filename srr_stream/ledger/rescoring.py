"""Whether verdicts say what their models say: every record of the log is scored again and compared bit for bit.

Unlike the rest of the audit this uses the service's own decoder and models: that is the point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from consumers.chunks import in_chunks
from srr_stream.errors import ModelRefused
from srr_stream.ledger import N_EXAMPLES, Example, Finding, Kind, Output, Place, lies_at
from srr_stream.ledger.reader import Judgements

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from consumers.decoding import Decoder
    from consumers.records import Batch, RawRecord
    from models.detector import Model

_AT_ONCE = 500
_AT_ONCE_BYTES = 32 << 20
"""Pictures are decoded in small chunks: each takes many times its file."""
_N_LOADED = 4


@dataclass
class Rescored:
    """What came of scoring again."""

    n_equal: int = 0
    n_unverifiable: dict[str, int] = field(default_factory=dict)
    """Why → how many verdicts could not be checked."""
    n_different: int = 0
    examples: list[Example] = field(default_factory=list)

    @property
    def n(self) -> int:
        """How many verdicts were looked at."""
        return self.n_equal + self.n_different + sum(self.n_unverifiable.values())

    @property
    def finding(self) -> Finding:
        """The verdicts that say something else than their model."""
        return Finding(Kind.SCORE_DIFFERS, self.n_different, tuple(self.examples))


class Rescorer:
    """Score the records of verdicts again.

    Parameters
    ----------
    versions
        The versions that there are.
    load
        Returns the model of a version as the service scores with it; raises `ModelRefused` if it must not be used.
    """

    def __init__(
        self,
        verdicts: Output,
        judgements: Judgements,
        decoder: Decoder,
        *,
        versions: Sequence[int],
        load: Callable[[int], Model],
    ) -> None:
        self._verdicts = verdicts
        self._judgements = judgements
        self._decoder = decoder
        self._versions = frozenset(versions)
        self._load = load
        self._models: dict[int, Model | str] = {}
        """Version → its model, or why there is none."""

    def check(self, records: Callable[[Place], Iterator[Sequence[RawRecord]]]) -> Rescored:
        """Compare every visible verdict with what its model says of its record.

        Parameters
        ----------
        records
            Gives the records of a partition of the input that are in the log, some at a time, in their order.
        """
        result, verdicts = Rescored(), self._verdicts
        for index, place in enumerate(verdicts.places):
            mine = np.flatnonzero(verdicts.is_visible & (verdicts.place == index))
            mine = mine[np.argsort(verdicts.offset[mine], kind="stable")]
            n_before = result.n
            for chunk in in_chunks(chain.from_iterable(records(place)), n_records=_AT_ONCE, n_bytes=_AT_ONCE_BYTES):
                wanted = [record for record in chunk if _has(verdicts.offset[mine], record.offset)]
                if wanted:
                    self._check_chunk(wanted, mine, result)
            _count(result, "the record is no longer in the log", len(mine) - (result.n - n_before))
        return result

    def _check_chunk(self, chunk: Sequence[RawRecord], mine: NDArray[np.int64], result: Rescored) -> None:
        verdicts, decoded = self._verdicts, self._decoder.decode(chunk)
        for bad in decoded.bad:
            result.n_different += int(np.count_nonzero(verdicts.offset[mine] == bad.raw.offset))
            detail = f"has a verdict, and these settings refuse it: {bad.reason}: {bad.detail}"
            _note(result, Example(bad.raw.topic, bad.raw.partition, bad.raw.offset, detail))
        offsets = np.array([record.offset for record in decoded.batch.raw], dtype=np.int64)
        entries = mine[np.isin(verdicts.offset[mine], offsets)]
        for version in np.unique(verdicts.version[entries]).tolist():
            of_version = entries[verdicts.version[entries] == version]
            rows = np.searchsorted(offsets, verdicts.offset[of_version])
            self._compare(decoded.batch, rows, of_version, version, result)

    def _compare(
        self,
        batch: Batch,
        rows: NDArray[np.int64],
        entries: NDArray[np.int64],
        version: int,
        result: Rescored,
    ) -> None:
        verdicts, judgements = self._verdicts, self._judgements
        model = self._model(version)
        if isinstance(model, str):
            _count(result, model, len(entries))
            return
        scores = model.score({name: column[rows] for name, column in batch.features.items()})
        again = Judgements(scores.score, scores.p_value, scores.severity)
        # What is near a record marked normal says so, and is what the model alone would flag.
        said_flagged = verdicts.is_flagged[entries] | (verdicts.mark[entries] != 0)
        differs = scores.flagged != said_flagged
        for column, recomputed in zip(judgements, again, strict=True):
            differs |= column[entries].view(np.int64) != recomputed.view(np.int64)
        result.n_different += int(np.count_nonzero(differs))
        result.n_equal += int(np.count_nonzero(~differs))
        for i in np.flatnonzero(differs)[:N_EXAMPLES].tolist():
            said = {name: float(column[entries[i]]) for name, column in judgements._asdict().items()}
            says = {name: float(column[i]) for name, column in again._asdict().items()}
            parts = [f"{name} is {said[name]!r}, not {says[name]!r}" for name in said if said[name] != says[name]]
            is_flagged = bool(said_flagged[i])
            if bool(scores.flagged[i]) != is_flagged:
                parts.append(f"flagged is {is_flagged}, not {not is_flagged}")
            record = batch.raw[int(rows[i])]
            detail = f"by version {version}, {'; '.join(parts)} ({lies_at(verdicts, int(entries[i]))})"
            _note(result, Example(record.topic, record.partition, record.offset, detail))

    def _model(self, version: int) -> Model | str:
        if version not in self._models:
            if len(self._models) == _N_LOADED:  # the log is read in order, and versions follow each other there
                self._models.pop(next(iter(self._models)))
            if version not in self._versions:
                self._models[version] = f"version {version} is not in the registry"
            else:
                try:
                    self._models[version] = self._load(version)
                except ModelRefused as error:
                    self._models[version] = f"version {version} is refused: {error}"
        return self._models[version]


def _has(ascending: NDArray[np.int64], offset: int) -> bool:
    at = int(np.searchsorted(ascending, offset))
    return at < len(ascending) and int(ascending[at]) == offset


def _count(result: Rescored, why: str, n: int) -> None:
    if n:
        result.n_unverifiable[why] = result.n_unverifiable.get(why, 0) + n


def _note(result: Rescored, example: Example) -> None:
    if len(result.examples) < N_EXAMPLES:
        result.examples.append(example)
