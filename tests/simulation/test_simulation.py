"""Thousands of schedules of failures over the scorer's core, and proof that the simulator would see what is wrong."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import pytest
import simulation
from simulation import Parts, first_failure, simulate

from consumers.delivery import AtLeastOnce, ExactlyOnce
from consumers.errors import MembershipLost, SinkError
from consumers.records import BadRecord, Decoded, Position, Verdicts
from srr_stream.ledger import Mode
from srr_stream.live_model import Live
from srr_stream.scorer import Scorer

MODES: tuple[Mode, ...] = ("at_least_once", "exactly_once")
N_SCHEDULES = int(os.environ.get("SRR_SIMULATION_SCHEDULES", "750"))
"""Of each mode. For a night: SRR_SIMULATION_SCHEDULES=1000000 pytest tests/simulation --timeout=0."""
FIRST_SEED = int(os.environ.get("SRR_SIMULATION_SEED", "1"))
N_CHUNKS = 5
ENOUGH = 400
"""Schedules within which a wrong part must be found."""

REGRESSIONS: list[tuple[Mode, int]] = [
    ("at_least_once", 10),  # an alert of one version, torn off, and then another version's of an earlier record
    ("at_least_once", 11),  # answered by two versions, because the first was not known to be durable
    ("exactly_once", 1),  # everybody crashes
    ("exactly_once", 19),  # two writers of a partition, one of them put out of the group
]
"""Seeds that failed once. What they do changes with the calls that a scorer makes: what was wrong in a part under test
is kept among `WRONG` as well, by what it did."""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk", range(N_CHUNKS))
def test_the_promise_is_kept_whatever_fails_and_whenever(mode: Mode, chunk: int) -> None:
    seeds = range(FIRST_SEED + chunk, FIRST_SEED + N_SCHEDULES, N_CHUNKS)
    failure = first_failure(seeds, mode)
    assert failure is None, str(failure)


@pytest.mark.parametrize(("mode", "seed"), REGRESSIONS)
def test_what_failed_once_does_not_fail_again(mode: Mode, seed: int) -> None:
    outcome = simulate(seed, mode)
    assert outcome.problem is None, str(outcome)


def test_the_schedules_hold_every_failure_that_they_are_about() -> None:
    outcomes = [simulate(seed, mode) for seed in range(1, 91) for mode in MODES]
    told = "\n".join(event for outcome in outcomes for event in outcome.events)
    missing = [event for event in EXPECTED if event not in told]
    assert not missing
    assert min(outcome.n_answers for outcome in outcomes) > 0


EXPECTED = [
    "crashes",
    "starts, while the others go on",
    "falls asleep",
    "the group puts",
    "finds itself put out of the group",
    "the transaction of",
    "is not let commit",
    "no broker answers",
    "what it had read is lost",
    "the flush failed (before)",
    "the flush failed (torn)",
    "the flush failed (after)",
    "the commit failed (offsets)",
    "the commit failed (late)",
    "the commit failed (after)",
    "the commit failed (before)",
    "has nothing to take back",
    "comes too late",
    "another has taken over",
    "the group has put this member out",
    "another member has the instance id",
    "and damaged",
    "looks at the model",
    "is given other outputs",
    "keeps its outputs",
]


def test_a_seed_says_everything_also_in_another_process() -> None:
    here = simulate(19, "exactly_once")
    for hash_seed in ("1", "2"):
        command = [sys.executable, simulation.__file__, "--mode", "exactly_once", "--seed", "19"]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        there = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60)
        assert there.stdout.startswith(f"{here}\n")


def test_a_failure_is_told_with_its_seed_its_events_and_how_to_see_it_again() -> None:
    failure = first_failure(range(1, 1 + ENOUGH), "at_least_once", Parts(at_least_once=CommitsFirst))
    assert failure is not None
    assert str(failure).startswith(f"seed {failure.seed}, at_least_once: events-")
    assert f"*** {failure.problem}" in failure.events
    assert str(failure).endswith(f"--mode at_least_once --seed {failure.seed}")
    assert simulate(failure.seed, "at_least_once", Parts(at_least_once=CommitsFirst)) == failure


# --- wrong parts ----------------------------------------------------------------------------------------------------


class CommitsFirst(AtLeastOnce):
    def publish(self, verdicts: Verdicts, bad: Sequence[BadRecord], while_waiting: Callable[[], None]) -> None:
        self._sink.write(verdicts)
        self._sink.write_bad(bad)

    def commit(self, positions: Mapping[Position, int], while_waiting: Callable[[], None]) -> None:
        super().commit(positions, while_waiting)
        self._sink.flush(while_waiting)


class IgnoresAFailedFlush(AtLeastOnce):
    def publish(self, verdicts: Verdicts, bad: Sequence[BadRecord], while_waiting: Callable[[], None]) -> None:
        with contextlib.suppress(SinkError):
            super().publish(verdicts, bad, while_waiting)


class ForgetsDeadLetters(AtLeastOnce):
    def publish(self, verdicts: Verdicts, bad: Sequence[BadRecord], while_waiting: Callable[[], None]) -> None:
        super().publish(verdicts, bad[1:], while_waiting)


class GoesOnAfterMembershipLost(ExactlyOnce):
    def commit(self, positions: Mapping[Position, int], while_waiting: Callable[[], None]) -> None:
        with contextlib.suppress(MembershipLost):
            super().commit(positions, while_waiting)


class GoesOnAfterAFailedCommit(ExactlyOnce):
    def commit(self, positions: Mapping[Position, int], while_waiting: Callable[[], None]) -> None:
        with contextlib.suppress(SinkError):
            super().commit(positions, while_waiting)


class PublishesTwice(ExactlyOnce):
    def publish(self, verdicts: Verdicts, bad: Sequence[BadRecord], while_waiting: Callable[[], None]) -> None:
        try:
            super().publish(verdicts, bad, while_waiting)
        except SinkError:
            super().publish(verdicts, bad, while_waiting)


class CommitsOneTooFar(ExactlyOnce):
    def commit(self, positions: Mapping[Position, int], while_waiting: Callable[[], None]) -> None:
        super().commit({position: offset + 1 for position, offset in positions.items()}, while_waiting)


class ReadsTheModelTwice(Scorer):
    def _judge(self, decoded: Decoded, live: Live) -> Verdicts:
        verdicts = super()._judge(decoded, live)
        now = self._live_model.current or live
        return Verdicts(
            verdicts.batch,
            now.version,
            verdicts.score,
            verdicts.p_value,
            verdicts.severity,
            verdicts.flagged,
            verdicts.contributions,
        )


class PollsAgainBeforeItCommits(Scorer):
    def _still_here(self) -> None:
        self._source.poll(0.0, 1)


WRONG: dict[str, tuple[Mode, Parts]] = {
    "commits before it publishes": ("at_least_once", Parts(at_least_once=CommitsFirst)),
    "ignores a failed flush": ("at_least_once", Parts(at_least_once=IgnoresAFailedFlush)),
    "forgets a dead letter": ("at_least_once", Parts(at_least_once=ForgetsDeadLetters)),
    "publishes without a transaction": ("exactly_once", Parts(exactly_once=AtLeastOnce, is_transactional=False)),
    "goes on after its membership is lost": ("exactly_once", Parts(exactly_once=GoesOnAfterMembershipLost)),
    "goes on after a commit that failed": ("exactly_once", Parts(exactly_once=GoesOnAfterAFailedCommit)),
    "publishes again over the same connection": ("exactly_once", Parts(exactly_once=PublishesTwice)),
    "commits one offset too far": ("exactly_once", Parts(exactly_once=CommitsOneTooFar)),
    "reads the live model twice a turn": ("at_least_once", Parts(scorer=ReadsTheModelTwice)),
    "polls with a batch in the works": ("at_least_once", Parts(scorer=PollsAgainBeforeItCommits)),
    "reads before pending transactions are settled": ("exactly_once", Parts(waits_for_pending=False)),
    "commits as nobody after it was put out of the group": ("exactly_once", Parts(notices_that_it_is_out=False)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_scorer_is_found_out_that(wrong: str) -> None:
    mode, parts = WRONG[wrong]
    failure = first_failure(range(1, 1 + ENOUGH), mode, parts)
    assert failure is not None
    assert " ends with " not in failure.problem, "it must be found by what it does, not because it stumbles"
