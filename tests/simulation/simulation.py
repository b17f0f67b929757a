"""Scorers in a simulated world that fails on schedule: everything that happens follows from a seed.

The service's loop, the scorer, its delivery, its decoder and its live model are the real ones. Source, sink, registry
and clocks are simulated. Every call into a simulated part is a step: there the schedule may let another scorer go on,
kill this one, put it to sleep while the group goes on without it, or let things happen elsewhere.

Each scorer has a thread, and exactly one thread runs at a time; which one is the schedule's choice.

    python tests/simulation/simulation.py --mode exactly_once --seed 17          # one schedule, told event by event
    python tests/simulation/simulation.py --schedules 100000 --seed 1            # many, from this seed on
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry
from promise import ALERTS, DEAD, INPUT, SCHEMA, SCORES, Broken, FakeModel, Promise, manifest, record
from simulated_kafka import (
    NO_GENERATION,
    Broker,
    FencedInstance,
    FencedWriter,
    Membership,
    Message,
    Refused,
    Writer,
    records_from,
)

from consumers.decoding import JsonDecoder
from consumers.delivery import AtLeastOnce, Delivery, ExactlyOnce
from consumers.errors import BrokerUnavailable, ConsumersError, MembershipLost, SinkError
from consumers.records import BadRecord, Position, RawRecord, StoredRecord, Verdicts
from consumers.sinks.serialization import dead_letter_headers, verdict_bodies
from srr_stream import service
from srr_stream.errors import ModelRefused, RegistryError
from srr_stream.health import Health
from srr_stream.ledger import Mode
from srr_stream.live_model import Live, LiveModel
from srr_stream.metrics import ScorerMetrics
from srr_stream.pace import Pace
from srr_stream.registry import Pointer
from srr_stream.scorer import Scorer
from srr_stream.service import Service
from srr_stream.statusz import ScorerBoard
from srr_stream.tracing import NoSpans

CALM_STEPS = 6000
"""Far more than a world without faults needs to answer everything."""
_CALM_SWITCH_RATE = 0.1
_DECODER = JsonDecoder(SCHEMA)


class Crash(BaseException):
    """The process is gone."""


@dataclass(frozen=True)
class Parts:
    """What is under test. Tests put wrong parts in, to see that they are found."""

    scorer: Callable[..., Scorer] = Scorer
    at_least_once: Callable[[Any, Any], Delivery] = AtLeastOnce
    exactly_once: Callable[[Any, Any], Delivery] = ExactlyOnce
    is_transactional: bool = True
    """Whether the sink of `exactly_once` writes in transactions."""
    waits_for_pending: bool = True
    """Whether a source asks for committed offsets that are stable."""
    notices_that_it_is_out: bool = True
    """Whether a source that was put out of the group raises, instead of giving a membership of nobody."""


@dataclass(frozen=True)
class Outcome:
    """How a schedule went."""

    seed: int
    mode: Mode
    problem: str | None
    events: tuple[str, ...]
    n_answers: int
    n_steps: int

    def __str__(self) -> str:
        told = "\n".join(f"  {event}" for event in self.events)
        command = f"python tests/simulation/simulation.py --mode {self.mode} --seed {self.seed}"
        return f"seed {self.seed}, {self.mode}: {self.problem or 'the promise was kept'}\n{told}\nagain: {command}"


# --- the world ------------------------------------------------------------------------------------------------------


class World:
    """One schedule: the seed decides what there is, what happens, and when.

    A rate is drawn for every kind of fault, so that schedules differ: some have none of a kind, some little else.
    """

    def __init__(self, seed: int, mode: Mode, parts: Parts) -> None:
        self.rng = rng = random.Random(f"{seed} {mode}")
        self.mode, self.parts = mode, parts
        self.events: list[str] = []
        self.promise = Promise(mode)
        self.n_partitions = rng.randint(1, 3)
        self.n_outputs = rng.randint(1, 3)
        self.broker = self.promise.broker = Broker(self.n_partitions, self.promise)
        self.has_instance_ids = rng.random() < 0.5
        self.n_slots = rng.randint(1, 3)
        self.max_batch = rng.choice([1, 2, 3, 5, 12])
        self.n_fault_steps = rng.choice([60, 120, 250])
        self.rates = {kind: rng.choice([0.0, 0.02, 0.1]) for kind in ("poll", "connect", "write", "commit", "close")}
        self.switch_rate = rng.choice([0.05, 0.2, 0.5])
        self.event_rate = rng.choice([0.1, 0.3])
        weights = {name: weight * rng.choice([0, 1, 1, 3]) for name, weight in _HAPPENINGS.items()}
        weights |= {name: _HAPPENINGS[name] for name in ("land", "refresh", "append", "restart", "markers", "late")}
        self._happenings = [getattr(self, f"_{name}") for name in weights]
        self._cumulative = [sum(list(weights.values())[: i + 1]) for i in range(len(weights))]

        self.n_steps = 0
        self.is_calm = self.is_over = False
        self.problem: str | None = None
        self.outage_until = 0
        self.wall_s, self.monotonic_s = 1_700_000_000.0, 0.0
        self.champion = 0 if rng.random() < 0.5 else 1
        self.newest = max(1, self.champion)
        self.damaged: set[int] = set()
        self.late: list[Callable[[], None]] = []
        """Requests on their way, whose senders have given them up."""
        self.sinks: list[SimulatedSink] = []
        self.processes: list[Process] = []
        self._n_started = 0
        self._is_elsewhere = False
        self._finished = threading.Lock()
        self._finished.acquire()
        for partition in range(self.n_partitions):
            for _ in range(rng.randint(0, 8)):
                self._append_to(partition)

    def run(self) -> None:
        """Let everything happen."""
        for slot in range(self.n_slots):
            self.start(slot)
        self.current = self.processes[0]
        self.current.baton.release()
        self._finished.acquire()
        for process in self.processes:
            process.thread.join()
        if self.problem is None:
            try:
                if not self.promise.is_all_answered:
                    raise Broken("everybody has stopped, and not everything is answered")
                self.promise.audit()
            except Broken as broken:
                self.problem = str(broken)

    # --- steps --------------------------------------------------------------------------------------------------

    def step(self, process: Process, what: str) -> None:
        """Let happen what the schedule says, then return to the caller, unless its process is gone."""
        if self._is_elsewhere:
            return
        if process.is_dead:
            raise Crash
        self.n_steps += 1
        try:
            if not self.is_calm:
                if self.n_steps >= self.n_fault_steps:
                    self._calm_down()
                elif self.rng.random() < self.event_rate:
                    self._happen()
            else:
                self._settle()
        except Broken as broken:
            self.fail(str(broken))
        if self.is_over and self.problem is not None:
            process.is_dead = True
        if not process.is_dead and self.rng.random() < (self.switch_rate if not self.is_calm else _CALM_SWITCH_RATE):
            self._switch(process)
        if process.is_dead:
            raise Crash
        self.note(f"{process.name} {what}")

    def fault(self, kind: str, *choices: str) -> str | None:
        """Return which of the faults happens in this call, None for none."""
        if self.is_calm:
            return None
        if self.n_steps < self.outage_until:
            return choices[0]
        if self.rng.random() >= self.rates[kind]:
            return None
        return self.rng.choice(choices)

    def note(self, event: str) -> None:
        self.events.append(event)

    def fail(self, problem: str) -> None:
        """End the schedule with what is wrong."""
        if self.problem is None:
            self.problem = problem
            self.note(f"*** {problem}")
        self.is_over = True

    def hand_over(self, process: Process) -> None:
        """Let somebody else go on: `process` has ended."""
        if not self.is_over and not self._alive():
            with self._elsewhere():
                self._restart()
        rest = [other for other in self.processes if not other.is_done]
        if rest:
            self.current = rest[0] if self.is_over else self._choose(rest)
            self.current.baton.release()
        else:
            self._finished.release()

    def start(self, slot: int) -> None:
        """Start a scorer's process."""
        self._n_started += 1
        process = Process(self, slot, f"{'ABC'[slot]}{self._n_started}")
        self.processes.append(process)
        process.thread.start()

    def _choose(self, rest: Sequence[Process]) -> Process:
        awake = [other for other in rest if other.sleeps_until <= self.n_steps or other.is_dead]
        return self.rng.choice(awake or rest)

    def _switch(self, process: Process) -> None:
        other = self._choose([p for p in self.processes if not p.is_done])
        if other is not process:
            self.current = other
            other.baton.release()
            process.baton.acquire()

    # --- what happens elsewhere -----------------------------------------------------------------------------------

    def _happen(self) -> None:
        happening = self.rng.choices(self._happenings, cum_weights=self._cumulative)[0]
        with self._elsewhere():
            happening()

    @contextmanager
    def _elsewhere(self) -> Iterator[None]:
        self._is_elsewhere = True
        try:
            yield
        finally:
            self._is_elsewhere = False

    def _alive(self) -> list[Process]:
        return [process for process in self.processes if not process.is_dead and not process.is_done]

    def _append(self) -> None:
        self._append_to(self.rng.randrange(self.n_partitions))

    def _append_to(self, partition: int) -> None:
        log = self.broker.inputs[partition]
        if len(log) < 20:
            gap = self.rng.choice([0, 0, 0, 1, 3])  # the marker of a transaction, or what was compacted away
            log.append(record(partition, self.broker.end(partition) + gap))

    def _land(self) -> None:
        sinks = [sink for sink in self.sinks if sink.has_unsent]
        if sinks:
            self.rng.choice(sinks).land_one()

    def _late(self) -> None:
        if self.late:
            self.late.pop(self.rng.randrange(len(self.late)))()

    def _markers(self) -> None:
        names = list(self.broker.unsettled)
        if names:
            self.broker.complete(self.rng.choice(names))

    def _timeout(self) -> None:
        names = list(self.broker.unsettled)
        if names:
            name = self.rng.choice(names)
            self.note(f"the transaction of {name} times out")
            self.broker.time_out(name)

    def _crash(self) -> None:
        alive = self._alive()
        if alive:
            self._kill(self.rng.choice(alive))

    def _kill(self, process: Process) -> None:
        self.note(f"{process.name} crashes")
        process.is_dead = True
        for sink in self.sinks:
            if sink.process is process:
                sink.lose()

    def _restart(self) -> None:
        slots = {process.slot for process in self._alive()}
        missing = [slot for slot in range(self.n_slots) if slot not in slots]
        if missing:
            self.start(self.rng.choice(missing))
            self.note(f"{self.processes[-1].name} starts")

    def _twin(self) -> None:
        if len(self._alive()) < 4:
            self.start(self.rng.randrange(self.n_slots))
            self.note(f"{self.processes[-1].name} starts, while the others go on")

    def _sleep(self) -> None:
        process = self.rng.choice(self._alive() or self.processes)
        process.sleeps_until = self.n_steps + self.rng.choice([5, 20, 60])
        self.note(f"{process.name} falls asleep")

    def _kick(self) -> None:
        members = list(self.broker.group.members)
        if members:
            name = self.rng.choice(self.broker.group.latecomers() or members)
            self.note(f"the group puts {name} out")
            self.broker.group.leave(name)

    def _outage(self) -> None:
        self.outage_until = self.n_steps + self.rng.randint(1, 12)
        self.note("no broker answers for a while")

    def _promote(self) -> None:
        if self.rng.random() < 0.3 and self.newest > 1:
            self.champion = self.rng.randint(1, self.newest)
        else:
            self.newest += 1
            self.champion = self.newest
            if self.rng.random() < 0.2:
                self.damaged.add(self.champion)
        self.note(f"version {self.champion} is champion{', and damaged' * (self.champion in self.damaged)}")

    def _refresh(self) -> None:
        for process in self._alive():
            if process.live_model is not None and self.rng.random() < 0.5:
                process.live_model.refresh()

    def _clock(self) -> None:
        self.wall_s += self.rng.choice([-86_400.0, -1.0, 0.01, 60.0, 86_400.0])
        self.monotonic_s += self.rng.choice([0.0, 0.01, 60.0])

    # --- the end --------------------------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        """From here on nothing fails; what is on its way arrives or is lost, what nobody owns is cleared away."""
        self.note("--- calm")
        self.is_calm = True
        with self._elsewhere():
            newest = {process.slot: process for process in self._alive()}
            for process in self._alive():
                process.sleeps_until = 0
                if process is not newest[process.slot]:
                    self._kill(process)
            for slot in range(self.n_slots):
                if slot not in newest:
                    self.start(slot)
            while self.late:
                late = self.late.pop(self.rng.randrange(len(self.late)))
                if self.rng.random() < 0.5:
                    late()
            for sink in self.sinks:
                if sink.is_closed:
                    sink.lose_rest()
            for partition in range(self.n_partitions):
                self._append_to(partition)
            self.newest += 1
            self.champion = self.newest

    def _settle(self) -> None:
        """Time goes by in a calm world."""
        with self._elsewhere():
            owners = {p.source.member for p in self._alive() if p.source is not None}
            for name in [name for name in self.broker.group.members if name not in owners]:
                self.broker.group.leave(name)
            in_the_works = [sink.writer.transaction for sink in self.sinks if not sink.is_closed]
            for name, transaction in list(self.broker.unsettled.items()):
                self.broker.complete(name)
                if name in self.broker.unsettled and transaction not in in_the_works:
                    self.broker.time_out(name)
            if self.rng.random() < 0.3:
                self._refresh()
        if self.is_over:
            return
        if self.promise.is_all_answered and not self.broker.unsettled:
            self.is_over = True
            self.note("everything is answered")
        elif self.n_steps > self.n_fault_steps + CALM_STEPS:
            self.fail(f"nothing fails any more, and yet records are not answered: committed {self.broker.committed}")


_HAPPENINGS = {
    "append": 4,
    "land": 8,
    "late": 2,
    "markers": 2,
    "restart": 4,
    "refresh": 4,
    "promote": 2,
    "clock": 1,
    "crash": 1,
    "sleep": 2,
    "kick": 2,
    "twin": 0.3,
    "timeout": 0.7,
    "outage": 0.5,
}
"""What may happen elsewhere, and how often."""


# --- a process ------------------------------------------------------------------------------------------------------


class Process:
    """A scorer's process: the real service's loop in a thread that runs when it has the baton."""

    def __init__(self, world: World, slot: int, name: str) -> None:
        self.world, self.slot, self.name = world, slot, name
        self.is_dead = self.is_done = False
        self.sleeps_until = 0
        self.live_model: SimulatedLiveModel | None = None
        self.source: SimulatedSource | None = None
        self.instance_id = f"instance-{slot}" if world.has_instance_ids else None
        self.baton = threading.Lock()
        self.baton.acquire()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        self.baton.acquire()
        try:
            if not self.is_dead:
                SimulatedService(self)._score(lambda: self._should_stop())
        except Crash:
            pass
        except Broken as broken:
            self.world.fail(str(broken))
        except BaseException as error:
            self.world.fail(f"{self.name} ends with {error!r}")
            self.world.is_over = True
        self.is_done = True
        if self.world.is_over and self.world.problem is not None:
            for process in self.world.processes:
                process.is_dead = True
        self.world.hand_over(self)

    def _should_stop(self) -> bool:
        self.world.step(self, "goes round")
        return self.world.is_over


class SimulatedService(Service):
    """The real loops; what the constructor makes is simulated."""

    def __init__(self, process: Process) -> None:
        world = process.world
        self.process = process
        self._settings: Any = SimpleNamespace(
            process=process,
            kafka=SimpleNamespace(bootstrap_servers="simulated"),
            input=SimpleNamespace(poll_timeout=SimpleNamespace(total_seconds=lambda: 0.2)),
            output=SimpleNamespace(n_reasons=1),
            threshold=SimpleNamespace(false_alarm_rate=FakeModel.false_alarm_rate),
            gate=SimpleNamespace(auto_rollback=False),
        )
        self.metrics = _metrics(process)
        self.health = Health(live_timeout_s=60, clock=lambda: world.monotonic_s)
        self.live_model = process.live_model = SimulatedLiveModel(process)
        self.trainer = self.api = None
        self._pace = SimulatedPace(world)
        self._transactional_id = None
        if world.mode == "exactly_once" and world.parts.is_transactional:
            self._transactional_id = f"group-{process.instance_id or process.name}"
        self._was_connected = False
        self._observers = []
        self._labels = self._known_normals = None
        self._connected = self._swap_watch = None
        self._board = ScorerBoard()
        self._tracing = NoSpans()
        with world._elsewhere():
            self.live_model.refresh()

    def _wait(self, seconds: float, why: str, should_stop: Callable[[], bool]) -> None:
        self.health.not_ready(why)
        self.process.source = None
        self.process.world.step(self.process, f"backs off: {why}")

    def _look_for_settings(self) -> None:
        """Now and then somebody changes where the verdicts go, and back: here it is the same place."""
        world = self.process.world
        if world.is_calm or world.rng.random() > 0.03:
            return
        world.note(f"{self.process.name} is given other outputs")
        try:
            self._adopt(self._settings, frozenset({"output.alerts_topic"}))
        except ConsumersError as error:
            world.note(f"{self.process.name} keeps its outputs: {error}")


_pool: dict[str, ScorerMetrics] = {}


def _metrics(process: Process) -> ScorerMetrics:
    """Return metrics of its own for a process; made once a name, because that takes longer than a schedule."""
    if process.name not in _pool:
        _pool[process.name] = ScorerMetrics(CollectorRegistry())
    return _pool[process.name]


class SimulatedPace(Pace):
    """The real pace, in a world that says how long a batch takes."""

    def __init__(self, world: World) -> None:
        super().__init__(world.max_batch)
        self._rng = world.rng

    def update(self, n_records: int, seconds: float) -> None:
        super().update(n_records, self._rng.choice([0.0, 0.001, 0.001, 0.5, 2.0, 100.0]))


class SimulatedRegistry:
    """Versions that are promoted, rolled back, damaged or out of reach."""

    url = "simulated"

    def __init__(self, process: Process) -> None:
        self._world = process.world

    def pointer(self) -> Pointer:
        self._fail("the pointer cannot be read")
        return Pointer(champion=self._world.champion or None)

    def load(self, version: int) -> tuple[Any, Any]:
        self._fail("the version cannot be read")
        if not self._world.is_calm and self._world.rng.random() < 0.05:
            raise ModelRefused("its bytes are not its own", reason="hash")
        return FakeModel(version, is_damaged=version in self._world.damaged), manifest(version)

    def _fail(self, why: str) -> None:
        if not self._world.is_calm and self._world.rng.random() < 0.1:
            raise RegistryError(why)


class SimulatedLiveModel(LiveModel):
    """The real one over a simulated registry; whoever reads `current` may find another model the next time."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._live: Live | None = None
        super().__init__(
            SimulatedRegistry(process),  # type: ignore[arg-type]
            schema_digest=SCHEMA.digest,
            false_alarm_rate=FakeModel.false_alarm_rate,
            on_swap=lambda live: process.world.note(f"{process.name} has version {live.version} live"),
        )

    @property  # type: ignore[override]
    def current(self) -> Live | None:
        self.process.world.step(self.process, "looks at the model")
        return self._live

    @current.setter
    def current(self, live: Live | None) -> None:
        self._live = live


# --- the ends of a scorer -------------------------------------------------------------------------------------------


class SentCommit:
    """A commit on its way: it arrives once, at a moment of the schedule's, or never."""

    def __init__(self, broker: Broker, offsets: dict[int, int], who: Membership) -> None:
        self.offsets = offsets
        self.owed = dict(offsets)
        """Those of partitions that stayed here."""
        self.is_there = False
        self.refusal: Refused | None = None
        self.error: BrokerUnavailable | None = None
        """What its sender hears, whatever came of it."""
        self._broker, self._who = broker, who

    def arrive(self) -> None:
        if self.is_there:
            return
        self.is_there = True
        try:
            self._broker.commit(self.offsets, self._who)
        except Refused as refusal:
            self.refusal = refusal


class SimulatedSource:
    """A member of the simulated group, with the manners of :class:`consumers.sources.kafka.KafkaSource`."""

    def __init__(self, process: Process, on_rebalance: Callable[[], None]) -> None:
        self._process, self._world, self._broker = process, process.world, process.world.broker
        self._on_rebalance = on_rebalance
        self.member: str | None = None
        self._membership = Membership("", NO_GENERATION, process.instance_id)
        self._next: dict[int, int | None] = {}
        """Partition → the next offset to read; None while that is not known."""
        self._owed: dict[int, int] = {}
        self._sent: SentCommit | None = None
        self._is_paused = self._is_closed = False
        process.source = self
        self._world.step(process, "connects its source")
        if self._world.fault("connect", "fails"):
            raise BrokerUnavailable("no broker answers")

    def poll(self, timeout_s: float, max_records: int | None = None) -> Sequence[RawRecord]:
        world, broker = self._world, self._broker
        world.step(self._process, "polls")
        if world.fault("poll", "before"):
            raise BrokerUnavailable("the poll failed")
        if self._sent is not None and self._sent.error is None:
            self._sent.arrive()  # what was sent to the coordinator before is with it before
        try:
            if self.member is None:
                self.member = broker.group.join(self._process.instance_id)
            owned = broker.group.sync(self.member)
        except FencedInstance as error:
            raise MembershipLost("another member has the instance id") from error
        except Refused:
            world.note(f"{self._process.name} finds itself put out of the group")
            self.member = None
            self._take(frozenset())
            return []
        self._take(owned)
        member = broker.group.members[self.member]
        self._membership = Membership(self.member, member.generation, self._process.instance_id)
        if broker.group.is_rebalancing:
            return []
        world.step(self._process, "fetches")
        for partition, offset in self._next.items():
            if offset is None and not (world.parts.waits_for_pending and broker.is_pending(partition)):
                self._next[partition] = broker.committed.get(partition, 0)
        self._pay_owed()
        if self._is_paused:
            return []
        most = max_records or world.max_batch
        records = self._read(most if world.is_calm else world.rng.randint(0, most))
        if world.fault("poll", "after"):
            raise BrokerUnavailable("the poll failed, what it had read is lost")
        return records

    def stay(self) -> None:
        self._world.step(self._process, "stays")

    def commit(self, positions: Mapping[Position, int]) -> None:
        self._settle()
        world, offsets = self._world, {partition: offset for (_, partition), offset in positions.items()}
        world.step(self._process, f"sends a commit of {offsets}")
        for partition in offsets:
            self._owed.pop(partition, None)
        fault = world.fault("commit", "before", "after", "late", "refused")
        self._sent = sent = SentCommit(self._broker, offsets, self._membership)
        if fault in ("before", "after", "late"):
            sent.error = BrokerUnavailable(f"the commit failed ({fault})")
        if fault == "before":
            sent.is_there = True  # it never will be
        elif fault == "refused" and self._broker.group.is_rebalancing:
            sent.is_there, sent.refusal = True, Refused("the group is rebalancing")
        elif fault == "after" or (fault != "late" and world.rng.random() < 0.5):
            sent.arrive()
        else:
            world.late.append(sent.arrive)

    def _settle(self) -> None:
        """Wait for what came of the last commit."""
        sent, self._sent = self._sent, None
        if sent is None:
            return
        self._world.step(self._process, "hears of its commit")
        if sent.error is not None:
            raise sent.error
        sent.arrive()
        if isinstance(sent.refusal, FencedInstance):
            raise BrokerUnavailable("another member has the instance id")
        if sent.refusal is not None:
            self._world.note(f"{self._process.name} is not let commit: {sent.refusal}")
            self._owed |= sent.owed

    @property
    def membership(self) -> Membership:
        is_out = self.member not in self._broker.group.members
        if is_out and not self._world.parts.notices_that_it_is_out:
            return Membership("", NO_GENERATION, self._process.instance_id)
        if is_out and self._heard_that_it_is_out():
            raise MembershipLost("the group has put this member out")
        return self._membership

    def pause(self) -> None:
        self._is_paused = True

    def resume(self) -> None:
        self._is_paused = False

    def close(self) -> None:
        if self._is_closed or self._process.is_dead:
            return
        self._is_closed = True
        with suppress(BrokerUnavailable):
            self._settle()
        self._world.step(self._process, "leaves the group")
        if self.member is not None and self._process.instance_id is None and not self._world.fault("close", "lost"):
            self._broker.group.leave(self.member)
        self._process.source = None

    @property
    def assignment(self) -> frozenset[Position]:
        return frozenset((INPUT, partition) for partition in self._next)

    def lag(self) -> Mapping[Position, int]:
        return {
            (INPUT, partition): max(0, self._broker.end(partition) - offset)
            for partition, offset in self._next.items()
            if offset is not None
        }

    def _heard_that_it_is_out(self) -> bool:
        """A heartbeat may have been answered since, or not."""
        return self._world.rng.random() < 0.5

    def _take(self, owned: frozenset[int]) -> None:
        """Give up and take partitions."""
        if owned == set(self._next):
            return
        self._on_rebalance()
        self._next = {partition: self._next.get(partition) for partition in sorted(owned)}
        for owed in (self._owed, self._sent.owed if self._sent is not None else {}):
            for partition in set(owed) - owned:
                del owed[partition]
        self._world.note(f"{self._process.name} owns {sorted(owned)}")

    def _read(self, n: int) -> list[StoredRecord]:
        records: list[StoredRecord] = []
        partitions = list(self._next)
        self._world.rng.shuffle(partitions)
        for partition in partitions:
            start = self._next[partition]
            if start is not None:
                found = records_from(self._broker.inputs[partition], start, n - len(records))
                if found:
                    self._next[partition] = found[-1].offset + 1
                    records += found
        if records:
            self._world.note(f"{self._process.name} has {[(r.partition, r.offset) for r in records]}")
        return records

    def _pay_owed(self) -> None:
        if self._owed:
            owed, self._owed = self._owed, {}
            self._commit(owed, self.membership)

    def _commit(self, offsets: Mapping[int, int], who: Membership) -> None:
        try:
            self._broker.commit(offsets, who)
        except Refused as refusal:
            self._world.note(f"{self._process.name} is not let commit {offsets}: {refusal}")


class SimulatedSink:
    """A producer with the manners of :class:`consumers.sinks.kafka.KafkaSink`.

    What was written lands by itself, message by message, in its order within an output partition: some before the
    flush, some after its writer has crashed, some never.
    """

    def __init__(self, process: Process, transactional_id: str | None) -> None:
        self.process, self._world, self._broker = process, process.world, process.world.broker
        self.is_closed = False
        self._unsent: dict[tuple[str, int], deque[Message]] = {}
        self._is_open = False
        self._world.step(process, "connects its sink")
        fault = self._world.fault("connect", "before", "after")
        if fault == "before":
            raise BrokerUnavailable("no broker answers")
        self.writer: Writer = self._broker.connect(transactional_id)
        if fault == "after":
            raise BrokerUnavailable("no answer to the new writer")
        self._world.sinks.append(self)

    def begin(self) -> None:
        self.writer.transaction = None
        self._is_open = True

    def write(self, verdicts: Verdicts) -> None:
        rows = zip(verdicts.batch.raw, verdict_bodies(verdicts), verdicts.flagged.tolist(), strict=True)
        for raw, body, is_flagged in rows:
            self._put(SCORES, raw, body, verdicts.version, is_flagged)
            if is_flagged:
                self._put(ALERTS, raw, body, verdicts.version, is_flagged)

    def write_bad(self, bad: Sequence[BadRecord]) -> None:
        for one in bad:
            self._put(DEAD, one.raw, b"".join(value or b"" for _, value in dead_letter_headers(one)), None, False)

    def flush(self, while_waiting: Callable[[], None] = lambda: None) -> None:
        world = self._world
        world.step(self.process, "flushes")
        if world.rng.random() < 0.1:
            while_waiting()
        fault = world.fault("write", "before", "torn", "after")
        queues = list(self._unsent)
        world.rng.shuffle(queues)
        if fault != "before":
            for queue in queues:
                n = len(self._unsent.get(queue, ()))
                for _ in range(world.rng.randint(0, n) if fault == "torn" else n):
                    self._land(queue)
                world.step(self.process, f"has written to {queue[0]}-{queue[1]}")
        if fault is not None:
            raise SinkError(f"the flush failed ({fault})")

    def commit(
        self, positions: Mapping[Position, int], membership: Membership, while_waiting: Callable[[], None]
    ) -> None:
        world, offsets = self._world, {partition: offset for (_, partition), offset in positions.items()}
        world.step(self.process, f"adds {offsets} to the transaction, as {tuple(membership)}")
        fault = world.fault("commit", "before", "offsets", "late", "after")
        if fault == "before":
            raise SinkError("the offsets failed")
        try:
            self._broker.add_offsets(self.writer, offsets, membership)
            if world.rng.random() < 0.1:
                while_waiting()
            world.step(self.process, "commits the transaction")
            if fault == "late":
                writer = self.writer
                world.late.append(lambda: self._decide(writer))
            if fault in ("offsets", "late"):
                raise SinkError(f"the commit failed ({fault})")
            self._broker.decide(self.writer, is_commit=True)
        except Refused as refusal:
            raise MembershipLost(f"another has taken over: {refusal}") from refusal
        if world.rng.random() < 0.5:
            self._broker.complete(str(self.writer.transactional_id))
        world.step(self.process, "waits for the commit")
        if fault == "after":
            raise SinkError("the commit failed (after)")
        self._is_open = False

    def close(self) -> None:
        if self.is_closed or self.process.is_dead:
            return
        self.lose()
        self._world.step(self.process, "closes its sink")
        if self._is_open and self.writer.transactional_id is not None and not self._world.fault("close", "lost"):
            try:
                self._broker.decide(self.writer, is_commit=False)
            except Refused as refusal:
                self._world.note(f"{self.process.name} has nothing to take back: {refusal}")

    # --- what the wire does -------------------------------------------------------------------------------------------

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def land_one(self) -> None:
        """Let a message arrive, from whoever still lives or not."""
        try:
            self._land(self._world.rng.choice(list(self._unsent)))
        except MembershipLost:
            self._unsent.clear()  # its writer hears of it in the flush

    def lose(self) -> None:
        """Nobody waits for what is unsent any more: its beginning may be on its way, the rest is lost."""
        self.is_closed = True
        for queue, messages in list(self._unsent.items()):
            for _ in range(self._world.rng.randint(0, len(messages))):
                messages.pop()
            if not messages:
                del self._unsent[queue]

    def lose_rest(self) -> None:
        """What is on its way is lost as well, or its beginning arrives."""
        while self._unsent and self._world.rng.random() < 0.7:
            self.land_one()
        self._unsent.clear()

    def _put(self, topic: str, raw: RawRecord, body: bytes, version: int | None, is_flagged: bool) -> None:
        place = (topic, raw.partition % self._world.n_outputs)
        self._unsent.setdefault(place, deque()).append(
            Message(*place, raw.partition, raw.offset, body, version, is_flagged)
        )

    def _land(self, queue: tuple[str, int]) -> None:
        messages = self._unsent.get(queue)
        if not messages:
            return
        message = messages.popleft()
        if not messages:
            del self._unsent[queue]
        try:
            self._broker.land(self.writer, message)
        except FencedWriter as error:
            raise MembershipLost(f"another has taken over: {error}") from error

    def _decide(self, writer: Writer) -> None:
        try:
            self._broker.decide(writer, is_commit=True)
        except Refused as refusal:
            self._world.note(f"a commit of {self.process.name} comes too late: {refusal}")


# --- running --------------------------------------------------------------------------------------------------------


class _Assembly:
    """Stands in for :mod:`srr_stream.assembly` in the service: the settings say whose parts are wanted."""

    def make_sink(self, settings: Any, *, transactional_id: str | None) -> SimulatedSink:
        return SimulatedSink(settings.process, transactional_id)

    def make_source(self, settings: Any, *, on_rebalance: Callable[[], None], on_skipped: Any) -> SimulatedSource:
        return SimulatedSource(settings.process, on_rebalance)

    def make_decoder(self, settings: Any) -> JsonDecoder:
        return _DECODER

    def make_delivery(self, settings: Any, source: Any, sink: Any) -> Delivery:
        world = settings.process.world
        return (world.parts.exactly_once if world.mode == "exactly_once" else world.parts.at_least_once)(source, sink)

    def make_swap_watch(self, settings: Any, live_model: Any, metrics: Any) -> None:
        return None

    def make_drift_trigger(self, settings: Any) -> None:
        return None

    def heat_map_url(self, settings: Any) -> None:
        return None

    def log_as_set(self, settings: Any) -> None:
        return None


def _make_scorer(source: Any, decoder: Any, live_model: Any, delivery: Any, **options: Any) -> Scorer:
    world = live_model.process.world
    return world.parts.scorer(source, decoder, live_model, delivery, clock=lambda: world.wall_s, **options)


@contextmanager
def simulated_service() -> Iterator[None]:
    """Let the service make simulated parts, and keep quiet."""
    loggers = [logging.getLogger(name) for name in ("srr_stream", "consumers")]
    before: Any = service.assembly, service.Scorer, [logger.level for logger in loggers]
    service.assembly, service.Scorer = _Assembly(), _make_scorer  # type: ignore[assignment, misc]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        service.assembly, service.Scorer = before[:2]
        for logger, level in zip(loggers, before[2], strict=True):
            logger.setLevel(level)


def simulate(seed: int, mode: Mode, parts: Parts | None = None) -> Outcome:
    """Run one schedule."""
    with simulated_service():
        world = World(seed, mode, parts or Parts())
        world.run()
    n_answers = sum(map(len, world.broker.outputs.values()))
    return Outcome(seed, mode, world.problem, tuple(world.events), n_answers, world.n_steps)


def first_failure(seeds: Sequence[int], mode: Mode, parts: Parts | None = None) -> Outcome | None:
    """Run schedules until one fails."""
    return next((outcome for seed in seeds if (outcome := simulate(seed, mode, parts)).problem), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--schedules", type=int, help="run so many, from the seed on; without it one is told in full")
    parser.add_argument("--mode", choices=["at_least_once", "exactly_once"], help="both in turn if not given")
    options = parser.parse_args()
    modes: list[Mode] = [options.mode] if options.mode else ["at_least_once", "exactly_once"]
    started, n_failed = time.perf_counter(), 0
    for seed in range(options.seed, options.seed + (options.schedules or 1)):
        for mode in modes:
            outcome = simulate(seed, mode)
            n_failed += outcome.problem is not None
            if options.schedules is None or outcome.problem is not None:
                print(outcome, flush=True)
    n = (options.schedules or 1) * len(modes)
    minutes = (time.perf_counter() - started) / 60
    print(f"{n} schedules, {n_failed} failed, {n / minutes:,.0f} a minute")
    return int(n_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
