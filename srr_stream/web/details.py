"""Single records: read from the log again, shown, judged and explained."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import orjson

from consumers.decoding import Decoder
from consumers.errors import ConsumersError
from consumers.records import Batch, RawRecord, StoredRecord, Verdicts, event_id
from consumers.sinks.serialization import verdict_bodies
from srr_stream.errors import NoHeatMap, NoModel, NoRecord, RegistryError
from srr_stream.judging import reasons_of, spare
from srr_stream.labels import place_of
from srr_stream.record_reader import RecordReader
from srr_stream.training_record import nearest_normals
from srr_stream.web.views import Flagged, FlaggedDetail, Neighbour, Reason, RecordView

if TYPE_CHECKING:
    from srr_stream.heat_maps import HeatMap, HeatMaps
    from srr_stream.labels.known_normals import KnownNormals
    from srr_stream.live_model import Live
    from srr_stream.model_shelf import ModelShelf
    from srr_stream.registry import Registry

N_NEAREST = 5
_MAX_TEXT = 500
"""Characters of a text in a record that is shown."""
_N_REASONS = 5
_OWN = ("id", "topic", "partition", "offset", "key", "time", "heat_map")
"""Of a verdict, what a record that came with a request does not have."""


class Details:
    """Reads, shows, judges and explains single records. One is decoded and judged at a time, whoever asks.

    Parameters
    ----------
    decoder
        This one's own.
    shelf
        Has the models.
    n_reasons
        How many fields a verdict names.
    known_normals
        Keeps false alarms that people marked from being flagged, as in the scorer; this one's own. None: nobody does.
    """

    def __init__(
        self,
        reader: RecordReader,
        decoder: Decoder,
        shelf: ModelShelf,
        registry: Registry,
        heat_maps: HeatMaps,
        *,
        n_reasons: int = _N_REASONS,
        known_normals: KnownNormals | None = None,
    ) -> None:
        self._reader = reader
        self._decoder = decoder
        self._shelf = shelf
        self._registry = registry
        self._heat_maps = heat_maps
        self._n_reasons = n_reasons
        self._known_normals = known_normals
        self._turn = threading.Lock()

    def raw(self, id: str) -> RawRecord:
        """Return a record of the input topics.

        Raises
        ------
        NoRecord
            If the id names none, or none that is there.
        ConsumersError
            If the log cannot be read.
        """
        try:
            topic, partition, offset = place_of(id)
        except ValueError as error:
            raise NoRecord(str(error)) from error
        return self._reader.read(topic, partition, offset)

    def record(self, id: str) -> RecordView:
        """Return a record of the input topics to be shown; what cannot be had says why."""
        try:
            return shown(self.raw(id).value)
        except (NoRecord, ConsumersError) as error:
            return RecordView(None, str(error))

    def of(self, flagged: Flagged) -> FlaggedDetail:
        """Return everything about a flagged record; what cannot be had says why."""
        try:
            raw = self.raw(flagged.id)
        except (NoRecord, ConsumersError) as error:
            return _detail(flagged, RecordView(None, str(error)), str(error))
        view = RecordView(None, "it is a picture") if self._is_file(raw) else shown(raw.value)
        try:
            live = self._model(flagged.version)
            batch = self._batch(raw)
            with self._turn:
                parts = live.model.explain(batch.features, n_top=len(live.model.fields))[0]
        except (NoModel, NoRecord, RegistryError) as error:
            return _detail(flagged, view, str(error))
        contributions = tuple(Reason(*part) for part in parts)
        nearest, problem = self._nearest(live, batch)
        return FlaggedDetail(
            flagged=flagged,
            record=view.record,
            record_problem=view.problem,
            contributions=contributions,
            contributions_problem=None,
            explained_by=live.version,
            nearest=nearest,
            nearest_problem=problem,
            is_picture=live.model.takes_pictures,
        )

    def picture(self, id: str) -> bytes:
        """Return the picture of a record, as the model sees it, as a PNG.

        Raises
        ------
        NoRecord, ConsumersError
            As :meth:`raw`; also if the record is bad.
        NoHeatMap
            If it is no picture.
        """
        batch = self._batch(self.raw(id))
        field = batch.schema.image_field
        if field is None:
            raise NoHeatMap(f"{id} has no picture in it", reason="no_picture")
        return _png(batch.columns[field.name][0])

    def heat_map(self, id: str, version: int | None) -> HeatMap:
        """Return the heat map of a picture by a version, by the live one if None; raises NoRecord and NoHeatMap."""
        try:
            topic, partition, offset = place_of(id)
        except ValueError as error:
            raise NoRecord(str(error)) from error
        return self._heat_maps.draw(topic, partition, offset, version)

    def score(self, records: Sequence[bytes]) -> list[dict[str, Any]]:
        """Judge records by the live model: see :meth:`srr_stream.web.desk.Desk.score`.

        Raises
        ------
        NoModel
            If there is none yet.
        """
        live = self._shelf.get()
        raw = [StoredRecord("request", 0, index, 0, None, value) for index, value in enumerate(records)]
        with self._turn:
            decoded = self._decoder.decode(raw)
            verdicts = judge(live, decoded.batch, n_reasons=self._n_reasons, known_normals=self._known_normals)
        answers: dict[int, dict[str, Any]] = {
            bad.raw.offset: {"index": bad.raw.offset, "problem": {"reason": bad.reason, "detail": bad.detail}}
            for bad in decoded.bad
        }
        for body in map(orjson.loads, verdict_bodies(verdicts)):
            index = body["offset"]
            answers[index] = {"index": index} | {key: value for key, value in body.items() if key not in _OWN}
        return [answers[index] for index in sorted(answers)]

    def verdict(self, raw: RawRecord) -> tuple[int, float, float] | None:
        """Return version, p-value and severity by the live model; None if the record is bad, or there is no model."""
        try:
            live, batch = self._shelf.get(), self._batch(raw)
        except (NoModel, NoRecord):
            return None
        with self._turn:
            scores = live.model.score(batch.features)
        return live.version, float(scores.p_value[0]), float(scores.severity[0])

    def close(self) -> None:
        """Let the log go; twice is fine."""
        self._heat_maps.close()
        self._reader.close(2.0)

    def _is_file(self, raw: RawRecord) -> bool:
        """Return whether a record is the file of a picture, and no JSON."""
        return not (raw.value or b"").lstrip().startswith(b"{")

    def _model(self, version: int) -> Live:
        """Return the version that flagged, the live one if that is gone."""
        try:
            return self._shelf.get(version)
        except NoModel:
            return self._shelf.get()

    def _batch(self, raw: RawRecord) -> Batch:
        """Return a record as a batch of one; raises NoRecord if it is bad."""
        with self._turn:
            decoded = self._decoder.decode([raw])
        if decoded.bad:
            bad = decoded.bad[0]
            raise NoRecord(f"{event_id(raw)} is a dead letter: {bad.reason}: {bad.detail}")
        return decoded.batch

    def _nearest(self, live: Live, batch: Batch) -> tuple[tuple[Neighbour, ...], str | None]:
        """Return the normal records of the training that are most like one, and why if there are none."""
        with self._turn:
            (point,) = live.model.coordinates(batch.features)
        found, why_not = nearest_normals(self._registry, live.version, point, N_NEAREST)
        nearest = []
        for id, _place, distance in found:
            view = self._neighbour(id)
            nearest.append(Neighbour(id, distance, view.record, view.problem))
        return tuple(nearest), why_not

    def _neighbour(self, id: str) -> RecordView:
        try:
            raw = self.raw(id)
        except (NoRecord, ConsumersError) as error:
            return RecordView(None, str(error))
        return RecordView(None, "it is a picture") if self._is_file(raw) else shown(raw.value)


def judge(live: Live, batch: Batch, *, n_reasons: int, known_normals: KnownNormals | None = None) -> Verdicts:
    """Return the verdicts that the scorer would give, with reasons for what is flagged."""
    features = batch.features
    scores, known = spare(live.model.score(features), features, live, known_normals)
    return Verdicts(
        batch,
        live.version,
        scores.score,
        scores.p_value,
        scores.severity,
        scores.flagged,
        reasons_of(features, scores.flagged, live, n_reasons),
        known_normals=known,
    )


def shown(value: bytes | None) -> RecordView:
    """Return a record as JSON, long texts cut; why not, if it is none."""
    if not value:
        return RecordView(None, "the record has no value")
    try:
        return RecordView(_shortened(orjson.loads(value)))
    except (orjson.JSONDecodeError, RecursionError) as error:
        return RecordView(None, f"the record is no JSON that can be shown: {error}")


def _shortened(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        return f"{value[:_MAX_TEXT]}… ({len(value):,} characters)"
    if isinstance(value, dict):
        return {key: _shortened(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_shortened(part) for part in value]
    return value


def _detail(flagged: Flagged, view: RecordView, problem: str) -> FlaggedDetail:
    """Return what the verdict knows by itself."""
    return FlaggedDetail(
        flagged=flagged,
        record=view.record,
        record_problem=view.problem,
        contributions=flagged.reasons,
        contributions_problem=f"only the reasons of the verdict are known: {problem}",
        explained_by=None,
        nearest=(),
        nearest_problem=problem,
        is_picture=flagged.is_picture,
    )


def _png(picture: Any) -> bytes:
    from PIL import Image

    file = BytesIO()
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(file, "PNG")
    return file.getvalue()
