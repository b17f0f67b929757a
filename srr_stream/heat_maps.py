"""Heat maps on request: a record is read from the log again, scored again, and drawn.

For threads that answer questions, never for the scorer's: one question is worked on at a time, with a consumer and a
decoder of its own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from consumers.decoding import Decoder
from consumers.errors import ConsumersError
from consumers.logs import Log, OffsetRange
from consumers.records import Position, RawRecord
from srr_stream.errors import ModelRefused, NoHeatMap, RegistryError
from srr_stream.live_model import Live, LiveModel
from srr_stream.overlays import overlay_png
from srr_stream.registry import Registry

PATH = "/v1/heat-maps/"
_N_LOADED = 3
"""Models kept in memory beside the live one."""
_PATIENCE_S = 10.0
"""How long a question waits for those before it."""
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
    """Draws the records of some topics.

    Parameters
    ----------
    open_log
        Called for the log when the first question comes.
    topics
        Of nothing else is a record ever read.
    """

    def __init__(
        self,
        open_log: Callable[[], Log],
        decoder: Decoder,
        live_model: LiveModel,
        registry: Registry,
        *,
        topics: Collection[str],
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._open_log = open_log
        self._decoder = decoder
        self._live_model = live_model
        self._registry = registry
        self._topics = frozenset(topics)
        self._patience_s = patience_s
        self._turn = threading.Lock()
        self._log: Log | None = None
        self._ends: dict[Position, int] = {}
        self._loaded: OrderedDict[int, Live] = OrderedDict()

    def draw(self, topic: str, partition: int, offset: int, version: int | None = None) -> HeatMap:
        """Return the heat map of a record, by a version of the registry; by the live one if None.

        Raises
        ------
        NoHeatMap
            With the reason: there is no such record or version, it is no picture, or nothing can be said just now.
        """
        if topic not in self._topics:
            raise NoHeatMap(
                f"topic {topic!r} is not read here; there are {', '.join(sorted(self._topics))}", reason="not_found"
            )
        with self._in_turn():
            live = self._model(version)
            if not live.model.takes_pictures:
                raise NoHeatMap(
                    f"version {live.version} scores fields, not pictures; a verdict's reasons say what caused it",
                    reason="no_picture",
                )
            decoded = self._decoder.decode([self._record(topic, partition, offset)])
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
        if self._turn.acquire(timeout=_CLOSING_S):
            self._let_go()
            self._turn.release()

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

    def _model(self, version: int | None) -> Live:
        live = self._live_model.current
        if version is None:
            if live is None:
                raise NoHeatMap(f"there is no model yet: {self._live_model.problem or 'none'}", reason="not_ready")
            return live
        if live is not None and live.version == version:
            return live
        if version not in self._loaded:
            self._loaded[version] = self._load(version)
        self._loaded.move_to_end(version)
        while len(self._loaded) > _N_LOADED:
            self._loaded.popitem(last=False)
        return self._loaded[version]

    def _load(self, version: int) -> Live:
        try:
            there = self._registry.versions()
            if version not in there:
                raise NoHeatMap(f"version {version} is not in the registry; there are {there}", reason="not_found")
            return self._live_model.load(version)
        except ModelRefused as error:
            raise NoHeatMap(f"version {version} is refused ({error.reason}): {error}", reason="no_picture") from error
        except RegistryError as error:
            raise NoHeatMap(str(error), reason="not_ready") from error

    def _record(self, topic: str, partition: int, offset: int) -> RawRecord:
        try:
            if self._log is None:
                self._log = self._open_log()
            if offset >= self._ends.get((topic, partition), 0):  # ends only grow: mostly, one need not ask
                self._ends = dict(self._log.ends())
            end = self._ends.get((topic, partition))
            if end is None:
                raise NoHeatMap(f"topic {topic} has no partition {partition}", reason="not_found")
            if offset >= end:
                raise NoHeatMap(f"{topic}-{partition} ends at offset {end}; {offset} is not there", reason="not_found")
            records = list(self._log.read(OffsetRange(topic, partition, offset, offset + 1)))
        except ConsumersError as error:
            self._let_go()
            raise NoHeatMap(str(error), reason="not_ready") from error
        if not records:
            raise NoHeatMap(
                f"{topic}-{partition} has no record at offset {offset} any more; see the topic's retention",
                reason="not_found",
            )
        return records[0]

    def _let_go(self) -> None:
        self._ends = {}
        if self._log is not None:
            self._log.close()
            self._log = None
