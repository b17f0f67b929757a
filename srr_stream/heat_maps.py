"""Heat maps on request: a record is read from the log again, scored again, and drawn.

For threads that answer questions, never for the scorer's: one question is worked on at a time, with a consumer and a
decoder of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from consumers.decoding import Decoder
from consumers.errors import ConsumersError
from consumers.records import RawRecord
from srr_stream.errors import NoHeatMap, NoModel, NoRecord, RegistryError
from srr_stream.model_shelf import ModelShelf
from srr_stream.overlays import overlay_png
from srr_stream.record_reader import RecordReader

PATH = "/v1/heat-maps/"
_PATIENCE_S = 10.0
_CLOSING_S = 2.0


class HeatMap(NamedTuple):
    """A record's heat map, and what the model says of the record."""

    png: bytes
    severity: float
    version: int


def path_of(raw: RawRecord, version: int) -> str:
    """Return where the endpoint has the heat map of a record by a version. A topic's name needs no quoting."""
    return f"{PATH}{raw.topic}/{raw.partition}/{raw.offset}.png?version={version}"


class HeatMaps:
    """Draws the records of the topics that a reader reads.

    Parameters
    ----------
    reader
        Closed with this.
    shelf
        Has the models.
    patience_s
        How long a question waits for those before it.
    """

    def __init__(
        self, reader: RecordReader, decoder: Decoder, shelf: ModelShelf, *, patience_s: float = _PATIENCE_S
    ) -> None:
        self._reader = reader
        self._decoder = decoder
        self._shelf = shelf
        self._patience_s = patience_s
        self._turn = threading.Lock()

    def draw(self, topic: str, partition: int, offset: int, version: int | None = None) -> HeatMap:
        """Return the heat map of a record, by a version of the registry; by the live one if None.

        Raises
        ------
        NoHeatMap
            With the reason: there is no such record or version, it is no picture, or nothing can be said just now.
        """
        if topic not in self._reader.topics:
            raise NoHeatMap(
                f"topic {topic!r} is not read here; there are {', '.join(sorted(self._reader.topics))}",
                reason="not_found",
            )
        with self._in_turn(), _told():
            live = self._shelf.get(version)
            if not live.model.takes_pictures:
                raise NoHeatMap(
                    f"version {live.version} scores fields, not pictures; a verdict's reasons say what caused it",
                    reason="no_picture",
                )
            decoded = self._decoder.decode([self._reader.read(topic, partition, offset)])
            if decoded.bad:
                bad = decoded.bad[0]
                raise NoHeatMap(
                    f"{topic}-{partition}-{offset} is a dead letter: {bad.reason}: {bad.detail}", reason="not_found"
                )
            columns = decoded.batch.features
            (picture,), (heat,) = columns[live.model.fields[0]], live.model.heat_maps(columns)
            severity = float(live.model.score(columns).severity[0])
            return HeatMap(overlay_png(picture, heat), severity, live.version)

    def close(self) -> None:
        """Let the log go; twice is fine. A question that a lost broker holds up is not waited for long."""
        self._reader.close(_CLOSING_S)

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        if not self._turn.acquire(timeout=self._patience_s):
            raise NoHeatMap(
                f"other heat maps have been worked on for {self._patience_s:g} s; try again", reason="not_ready"
            )
        try:
            yield
        finally:
            self._turn.release()


@contextmanager
def _told() -> Iterator[None]:
    """Say why there is no heat map."""
    try:
        yield
    except NoRecord as error:
        raise NoHeatMap(str(error), reason="not_found") from error
    except NoModel as error:
        raise NoHeatMap(str(error), reason="no_picture" if error.reason == "refused" else error.reason) from error
    except (RegistryError, ConsumersError) as error:
        raise NoHeatMap(str(error), reason="not_ready") from error
