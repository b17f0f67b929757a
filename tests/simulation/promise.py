"""The promise of delivery, watched while it is kept or broken; the records, models and verdicts of the simulation."""

from __future__ import annotations

import zlib
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simulated_kafka import Broker, Message, State

from consumers.decoding import JsonDecoder
from consumers.records import Contribution, Field, RecordSchema, StoredRecord, Verdicts
from consumers.sinks.serialization import dead_letter_headers, verdict_bodies
from models.detector import Scores
from srr_stream import ledger
from srr_stream.live_model import make_canary

INPUT = "events"
SCORES, ALERTS, DEAD = "scores", "alerts", "dead-letters"
SCHEMA = RecordSchema((Field("x"),))
_DECODER = JsonDecoder(SCHEMA)


class Broken(BaseException):
    """The promise is broken. Nothing that may be under test catches it."""


# --- records and models ---------------------------------------------------------------------------------------------


@cache
def record(partition: int, offset: int) -> StoredRecord:
    """Return the record that always lies there; every sixth or so is poison."""
    x = zlib.crc32(b"%d-%d" % (partition, offset)) % 1000
    value = b'{"x": "text"}' if x % 6 == 0 else b'{"x": %d}' % x
    return StoredRecord(INPUT, partition, offset, 1_700_000_000_000 + offset, b"%d" % x, value)


class FakeModel:
    """Says something else of every record with every version, and flags a quarter of them."""

    takes_pictures = False
    representation_name = "fake"
    false_alarm_rate = 0.25

    def __init__(self, version: int, *, is_damaged: bool = False) -> None:
        self._version = version
        self._is_damaged = is_damaged

    def score(self, columns: dict[str, NDArray[Any]]) -> Scores:
        x = columns["x"]
        score = x / (self._version + 1) + self._is_damaged
        flagged = (x.astype(np.int64) // 7 + self._version) % 4 == 0
        return Scores(score, 1 / (1 + score), score / 10, flagged)

    def explain(self, columns: dict[str, NDArray[Any]], *, n_top: int) -> list[list[tuple[Any, ...]]]:
        return [[("x", value / (self._version + 1), value, 0.0)] for value in columns["x"].tolist()]

    def canary(self) -> dict[str, NDArray[Any]]:
        return {"x": np.array([1.0, 2.0])}

    def on(self, device: str, n_threads: int | None) -> FakeModel:
        return self

    def with_false_alarm_rate(self, rate: float) -> FakeModel:
        return self


@cache
def manifest(version: int) -> Any:
    """Return as much of a manifest as is looked at."""
    canary = make_canary(FakeModel(version))  # type: ignore[arg-type]
    return SimpleNamespace(version=version, schema_digest=SCHEMA.digest, canary=canary, reason="simulated")


@cache
def offline(partition: int, offset: int, version: int | None) -> tuple[bytes, bool]:
    """Return the bytes of the only right answer, and whether it is flagged; version None: of the dead letter."""
    decoded = _DECODER.decode([record(partition, offset)])
    if version is None:
        return b"".join(value or b"" for _, value in dead_letter_headers(decoded.bad[0])), False
    scores = FakeModel(version).score(decoded.batch.features)
    x = float(decoded.batch.columns["x"][0])
    reasons = {0: (Contribution("x", x / (version + 1), x, 0.0),)} if scores.flagged[0] else {}
    verdicts = Verdicts(decoded.batch, version, scores.score, scores.p_value, scores.severity, scores.flagged, reasons)
    return next(verdict_bodies(verdicts)), bool(scores.flagged[0])


@cache
def is_poison(partition: int, offset: int) -> bool:
    """Whether the record can get a dead letter only."""
    return bool(_DECODER.decode([record(partition, offset)]).bad)


# --- the promise ----------------------------------------------------------------------------------------------------


class Promise:
    """Told of every effect, and raises `Broken` at the first that must not be."""

    def __init__(self, mode: ledger.Mode) -> None:
        self.broker: Broker
        self._mode = mode
        self._versions: dict[tuple[str, int, int], set[int | None]] = {}
        """What answers a record in a topic; None is the version of a dead letter."""
        self._last: dict[tuple[str, int], int] = {}
        self._answered: set[tuple[int, int]] = set()
        self._reach: dict[int, int] = {}
        self._named: set[int] = set()

    def published(self, message: Message) -> None:
        """Check an answer by itself and against what was there."""
        record_place = (message.partition, message.offset)
        where = f"{message.topic}: the answer to {INPUT}-{message.partition}-{message.offset}"
        if is_poison(*record_place) != (message.topic == DEAD):
            raise Broken(f"{where} is in the wrong topic")
        body, is_flagged = offline(*record_place, message.version)
        if message.body != body:
            raise Broken(f"{where} is not what version {message.version} says offline: {message.body!r}, not {body!r}")
        if message.topic == ALERTS and not is_flagged:
            raise Broken(f"{where} is an alert, and it is not flagged")
        if message.version is not None:
            self._named.add(message.version)
        known = self._versions.setdefault((message.topic, *record_place), set())
        if known and self._mode == "exactly_once":
            raise Broken(f"{where} is there twice")
        last = self._last.get((message.topic, message.partition), -1)
        if not known and message.offset < last and (message.topic != ALERTS or self._is_strict):
            raise Broken(f"{where} comes after the answer to {last}")
        self._last[message.topic, message.partition] = max(last, message.offset)
        known.add(message.version)
        judged = self._versions.get((SCORES, *record_place), ())
        alerted = self._versions.get((ALERTS, *record_place), ())
        if message.topic == DEAD or (message.version in judged and (not is_flagged or message.version in alerted)):
            self._answered.add(record_place)

    def committed(self, partition: int, offset: int) -> None:
        """Check that the group passes nothing that is not answered, and never goes back."""
        before = self.broker.committed.get(partition, 0)
        if offset < before:
            raise Broken(f"{INPUT}-{partition}: committed {offset} after {before}")
        log, reach = self.broker.inputs[partition], self.reach(partition)
        if reach < len(log) and offset > log[reach].offset:
            raise Broken(f"{INPUT}-{partition}: committed {offset}, but {log[reach].offset} is not answered")

    @property
    def _is_strict(self) -> bool:
        """Whether a repetition must equal what it repeats.

        Not with at_least_once after a swap: what was torn is repeated by the version that is live then, which flags
        other records. Each is right by its version; alerts alone then come late, or lack the verdict they came from.
        """
        return self._mode == "exactly_once" or len(self._named) <= 1

    def reach(self, partition: int) -> int:
        """Return how many records of the log, from its beginning, are answered."""
        log, reach = self.broker.inputs[partition], self._reach.get(partition, 0)
        while reach < len(log) and (partition, log[reach].offset) in self._answered:
            reach += 1
        self._reach[partition] = reach
        return reach

    @property
    def is_all_answered(self) -> bool:
        """Whether every record has its answer, and the group knows it."""
        return all(
            self.broker.committed.get(p, 0) == self.broker.end(p) and self.reach(p) == len(log)
            for p, log in enumerate(self.broker.inputs)
        )

    def audit(self) -> None:
        """Let the ledger look at what lies in the topics, as it does with a real broker's."""
        inputs = {
            (INPUT, p): ledger.InputPartition(
                0,
                self.broker.end(p),
                np.array([r.offset for r in log], dtype=np.int64),
                np.setdiff1d(np.arange(self.broker.end(p)), [r.offset for r in log]),
            )
            for p, log in enumerate(self.broker.inputs)
        }
        audited = ledger.check(
            inputs,
            scores=self._output(SCORES),
            alerts=self._output(ALERTS),
            dead_letters=self._output(DEAD),
            committed={(INPUT, p): offset for p, offset in self.broker.committed.items()},
            mode=self._mode,
        )
        for finding in audited.faults:
            raise Broken(f"the ledger finds: {finding.kind}, {finding.n} times: {finding.examples[0]}")

    def _output(self, topic: str) -> ledger.Output:
        entries = [
            ledger.Entry(
                INPUT,
                message.partition,
                message.offset,
                to_partition=to_partition,
                to_offset=at,
                digest=zlib.crc32(message.body),
                version=ledger.NO_VERSION if message.version is None else message.version,
                is_flagged=message.is_flagged,
                fate=fate,
                is_visible=fate is ledger.Fate.COMMITTED,
            )
            for (name, to_partition), log in sorted(self.broker.outputs.items())
            if name == topic
            for at, message in enumerate(log)
            for fate in [_fate(message)]
        ]
        return ledger.Output.of(topic, entries)


def _fate(message: Message) -> ledger.Fate:
    if message.transaction is None:
        return ledger.Fate.COMMITTED
    return {State.COMMITTED: ledger.Fate.COMMITTED, State.ABORTED: ledger.Fate.ABORTED}.get(
        message.transaction.state, ledger.Fate.OPEN
    )
