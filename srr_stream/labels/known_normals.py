"""False alarms that a person marked normal: what lies near them is not flagged again.

Near is as near as normal records are to each other, in the space in which the live model compares; a record marked
normal covers no more than that, whoever marked it. Score, p-value and severity stay what the model says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consumers.chunks import in_chunks
from consumers.decoding import Decoder
from consumers.records import StoredRecord
from srr_stream.labels import Label, LabelBook
from srr_stream.logs import get_logger
from srr_stream.training_record import nearest, radius_of

if TYPE_CHECKING:
    from srr_stream.live_model import Live

log = get_logger(__name__)

MAX_COMPARED = 1000
"""The newest so many labels of a kind are compared with. Pictures among them are embedded anew by every model."""
_AT_ONCE, _AT_ONCE_BYTES = 128, 32 << 20
_Key = tuple[str, str, str]
"""Id, label and time: a label that is set anew is another one."""


class KnownNormals:
    """Says which flagged records lie near one that is marked normal.

    For one thread. What is known of labels is worked out anew when they, or the model, change: of a new label then, of
    all when another model is live.

    Parameters
    ----------
    book
        The labels, as they come.
    decoder
        Reads the records that labels hold; one of its own.
    """

    def __init__(self, book: LabelBook, decoder: Decoder, *, max_compared: int = MAX_COMPARED) -> None:
        self._book = book
        self._decoder = decoder
        self._max_compared = max_compared
        self._known_as: tuple[int, int] | None = None
        """Versions of the model and the book that all this is about."""
        self._points: dict[_Key, NDArray[np.float32] | None] = {}
        """None: of a label whose record is not there, or refused by these settings."""
        self._labels: tuple[Label, ...] = ()
        self._rows = np.empty((0, 0), dtype=np.float32)
        self._equal: dict[bytes, Label] = {}

    def covering(self, live: Live, features: Mapping[str, NDArray[Any]], flagged: NDArray[np.bool_]) -> dict[int, str]:
        """Return row → id of the record marked normal that covers it, of the flagged rows that one covers.

        A record covers what is as near as it is; but not what is nearer to one that is marked an anomaly.

        Parameters
        ----------
        features
            Field → ``(n, …)``.
        flagged
            ``(n,)``, by `live`.
        """
        rows = np.flatnonzero(flagged)
        if not len(rows):
            return {}
        self._prepare(live)
        if not any(label.label == "normal" for label in self._labels):
            return {}
        points = _canonical(live.model.coordinates({name: column[rows] for name, column in features.items()}))
        which, distance = nearest(points, self._rows)
        radius = radius_of(live.manifest.training)
        covered = {}
        for row, point, i, far in zip(rows.tolist(), points, which.tolist(), distance.tolist(), strict=True):
            label = self._equal.get(point.tobytes()) or (self._labels[i] if far <= radius else None)
            if label is not None and label.label == "normal":
                covered[row] = label.id
        return covered

    def _prepare(self, live: Live) -> None:
        version = self._book.version
        if self._known_as == (live.version, version):
            return
        version, labels = self._book.snapshot()
        if self._known_as is None or self._known_as[0] != live.version:
            self._points = {}
        self._known_as = live.version, version
        compared = {
            _key(label): label
            for name in ("normal", "anomaly")
            for label in [one for one in labels if one.label == name][-self._max_compared :]
        }
        self._points = {key: point for key, point in self._points.items() if key in compared}
        self._work_out([label for key, label in compared.items() if key not in self._points], live)
        pairs = [(label, point) for key, label in compared.items() if (point := self._points[key]) is not None]
        self._labels = tuple(label for label, _ in pairs)
        points = [point for _, point in pairs]
        self._rows = np.array(points, dtype=np.float32)
        # The last one counts: of equal records with different labels the anomaly.
        self._equal = {point.tobytes(): label for point, label in zip(points, self._labels, strict=True)}

    def _work_out(self, labels: Sequence[Label], live: Live) -> None:
        """Find the points of labels."""
        by_place = {label.place: label for label in labels}
        for label in labels:
            if label.record is None:
                self._leave_out(label, "it holds none: it was too large, or nobody had it")
        records = [StoredRecord(*label.place, 0, None, label.record) for label in labels if label.record is not None]
        for chunk in in_chunks(records, n_records=_AT_ONCE, n_bytes=_AT_ONCE_BYTES):
            decoded = self._decoder.decode(chunk)
            for bad in decoded.bad:
                label = by_place[bad.raw.topic, bad.raw.partition, bad.raw.offset]
                self._leave_out(label, f"these settings refuse it: {bad.detail}")
            if not len(decoded.batch):
                continue
            points = _canonical(live.model.coordinates(decoded.batch.features))
            for raw, point in zip(decoded.batch.raw, points, strict=True):
                self._points[_key(by_place[raw.topic, raw.partition, raw.offset])] = point

    def _leave_out(self, label: Label, why: str) -> None:
        self._points[_key(label)] = None
        log.warning("the record of label %s (%s) is compared with none: %s", label.id, label.label, why)


def _key(label: Label) -> _Key:
    return label.id, label.label, label.at


def _canonical(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the points with one zero, so that equal ones have equal bytes."""
    one: NDArray[np.float32] = points + np.float32(0.0)
    return one
