"""What scorers and trainer say of themselves, put into one state and one sentence: pure functions over answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from srr_stream.history import BUCKET_S
from srr_stream.web.views import (
    DeskStatus,
    HistoryPoint,
    HistoryView,
    ModelRow,
    PartitionLag,
    ScorerState,
    State,
    Swap,
    TrainerState,
    Training,
)

LEAST_LAG = 1000
"""Records; fewer are no lag, however slow the stream."""
LAG_S = 30.0
"""A scorer is behind when it needs longer than this, at the pace of the last minute, for what waits."""
_BROKER_TROUBLES = ("broker", "sink")


@dataclass(frozen=True)
class Answer:
    """What ``/statusz`` of an address said; `problem` if it said nothing."""

    url: str
    content: Mapping[str, Any] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Answers:
    """Of all scorers, and of the trainer."""

    scorers: tuple[Answer, ...]
    trainer: Answer


def describe(
    answers: Answers, *, n_in_index: int, has_labels: bool, problems: tuple[str, ...], at: float
) -> DeskStatus:
    """Return the state of everything and the sentence that says it."""
    scorers = tuple(map(scorer_state, answers.scorers))
    trainer = trainer_state(answers.trainer)
    reached = [scorer for scorer in scorers if scorer.is_reachable]
    live = [scorer for scorer in reached if scorer.model_version is not None]
    newest = max(live, key=lambda scorer: scorer.model_version or 0, default=None)
    n_scored, n_flagged = sum(s.n_scored for s in reached), sum(s.n_flagged for s in reached)
    rates = [scorer.records_per_s for scorer in reached if scorer.records_per_s is not None]
    rate = sum(rates) if rates else None
    lag = sum(part.records for scorer in reached for part in scorer.lag)
    state, sentence = _state(scorers, trainer, lag=lag, rate=rate, n_in_index=n_in_index)
    return DeskStatus(
        state=state,
        sentence=sentence,
        scorers=scorers,
        trainer=trainer,
        live_version=newest.model_version if newest is not None else None,
        live_since=newest.loaded_at if newest is not None else None,
        lag=lag,
        n_scored=n_scored,
        n_flagged=n_flagged,
        flagged_ratio=n_flagged / n_scored if n_scored else None,
        records_per_s=rate,
        n_in_index=n_in_index,
        has_labels=has_labels,
        problems=problems,
        at=at,
    )


def scorer_state(answer: Answer) -> ScorerState:
    """Return what a scorer said; what it said that is no answer of a scorer counts as none."""
    said = answer.content
    if said is None:
        return ScorerState(answer.url, False, answer.problem or "does not answer")
    try:
        if said["role"] != "scorer":
            return ScorerState(answer.url, False, f"is a {said['role']}, not a scorer; correct api.scorer_urls")
        return ScorerState(
            url=answer.url,
            is_reachable=True,
            reason=str(said["reason"]),
            is_live=bool(said["live"]),
            is_ready=bool(said["ready"]),
            trouble=said.get("trouble"),
            package=said["version"],
            model_version=said["model_version"],
            loaded_at=said["loaded_at"],
            n_assigned=said["assigned"],
            lag=tuple(PartitionLag(part["topic"], part["partition"], part["records"]) for part in said["lag"]),
            n_scored=said["n_scored"],
            n_flagged=said["n_flagged"],
            n_dead_lettered=said["n_dead_lettered"],
            last_scored_at=said["last_scored_at"],
            records_per_s=said.get("records_per_s"),
        )
    except (KeyError, TypeError):
        return ScorerState(answer.url, False, "its /statusz is of another version of srr-stream, or of something else")


def trainer_state(answer: Answer) -> TrainerState:
    """Return what the trainer said; what it said that is no answer of a trainer counts as none."""
    said = answer.content
    if said is None:
        return TrainerState(answer.url, False, answer.problem or "does not answer")
    try:
        if said["role"] != "trainer":
            return TrainerState(answer.url, False, f"is a {said['role']}, not a trainer; correct api.trainer_url")
        return TrainerState(
            url=answer.url,
            is_reachable=True,
            reason=str(said["reason"]),
            is_live=bool(said["live"]),
            is_ready=bool(said["ready"]),
            phase=said["phase"],
            detail=said["detail"],
            n_records=said["n_records"],
            n_wanted=said["n_wanted"],
            step=said["step"],
            n_steps=said["n_steps"],
            excluded_ratio=said["excluded_ratio"],
        )
    except (KeyError, TypeError):
        return TrainerState(answer.url, False, "its /statusz is of another version of srr-stream, or of something else")


def _state(
    scorers: Sequence[ScorerState], trainer: TrainerState, *, lag: int, rate: float | None, n_in_index: int
) -> tuple[State, str]:
    reached = [scorer for scorer in scorers if scorer.is_reachable]
    if not reached:
        named = "; ".join(f"{scorer.url}: {scorer.reason}" for scorer in scorers)
        return "unreachable", f"No scorer answers ({named}). Start srr-stream run, or correct api.scorer_urls."
    away = [scorer for scorer in reached if scorer.trouble in _BROKER_TROUBLES]
    if away:
        return "broker_away", f"The broker is away: {away[0].reason}. What was scored so far can be looked at."
    in_trouble = [scorer for scorer in reached if scorer.trouble is not None]
    if in_trouble:
        return "holding", f"Not scoring: {in_trouble[0].reason}."
    if all(scorer.model_version is None for scorer in reached):
        return _without_model(reached[0], trainer)
    missing = [scorer for scorer in scorers if not scorer.is_reachable]
    beside = f" {len(missing)} of {len(scorers)} scorers do not answer." if missing else ""
    if lag >= LEAST_LAG and lag > LAG_S * (rate or 0.0):
        how_long = f", about {_duration(lag / rate)} at the pace of the last minute" if rate else ""
        return "lagging", f"Behind: {lag:,} records are not scored yet{how_long}.{beside}"
    if not any(scorer.n_scored for scorer in reached) and not n_in_index:
        return "empty", f"{_capital(reached[0].reason)}; no record has come yet.{beside}"
    return "scoring", f"{_capital('; '.join(dict.fromkeys(scorer.reason for scorer in reached)))}.{beside}"


def _without_model(scorer: ScorerState, trainer: TrainerState) -> tuple[State, str]:
    """Say what the first model waits for."""
    if not trainer.is_reachable:
        where = f"is not reached ({trainer.url}: {trainer.reason})" if trainer.url else trainer.reason
        return "holding", f"{_capital(scorer.reason)}. The trainer {where}."
    if trainer.phase == "waiting" and 0 < trainer.n_records < trainer.n_wanted:
        wanted = f"{trainer.n_records:,} of {trainer.n_wanted:,} records (window.min_size) are in the log"
        return "warming_up", f"Waiting for records to learn from: {wanted}. All of them are scored then."
    if trainer.phase == "waiting" and trainer.n_records == 0 and trainer.n_wanted > 0:
        return "empty", f"No record has come yet; {trainer.n_wanted:,} are needed to learn from (window.min_size)."
    if trainer.phase in ("reading", "training", "judging", "publishing"):
        step = (
            f", step {trainer.step:,} of {trainer.n_steps:,}" if trainer.phase == "training" and trainer.n_steps else ""
        )
        return (
            "warming_up",
            f"The first model is being made: {trainer.phase}{step}. Records wait in the log until then.",
        )
    return "holding", f"{_capital(scorer.reason)}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _duration(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


# --- history


def merged_history(answers: Answers, rows: Sequence[ModelRow], *, problem: str | None = None) -> HistoryView:
    """Return what all scorers scored, bucket by bucket, with swaps, and with the trainings of `rows`."""
    points: dict[float, HistoryPoint] = {}
    swaps: dict[int, float] = {}
    missing = [f"{answer.url}: {answer.problem}" for answer in answers.scorers if answer.content is None]
    for answer in answers.scorers:
        said = answer.content or {}
        try:
            for bucket in said.get("history", ()):
                point = HistoryPoint(
                    bucket["at"], bucket["n"], bucket["n_flagged"], bucket["max_severity"], bucket["version"]
                )
                points[point.at] = _both(points[point.at], point) if point.at in points else point
            for swap in said.get("swaps", ()):
                swaps[swap["version"]] = min(swap["at"], swaps.get(swap["version"], swap["at"]))
        except (KeyError, TypeError):
            missing.append(f"{answer.url}: its history is of another version of srr-stream")
    ordered = tuple(points[at] for at in sorted(points))
    since = ordered[0].at if ordered else 0.0
    trainings = [
        Training(datetime.fromisoformat(row.created_at).timestamp(), row.version, row.reason or "", row.passed)
        for row in rows
        if row.created_at is not None
    ]
    return HistoryView(
        bucket_s=BUCKET_S,
        points=ordered,
        swaps=tuple(Swap(at, version) for version, at in sorted(swaps.items(), key=lambda item: item[1])),
        trainings=tuple(
            sorted((t for t in trainings if t.at >= since), key=lambda training: (training.at, training.version))
        ),
        problem="; ".join([*([problem] if problem is not None else []), *missing]) or None,
    )


def _both(a: HistoryPoint, b: HistoryPoint) -> HistoryPoint:
    severities = [severity for severity in (a.max_severity, b.max_severity) if severity is not None]
    return replace(
        a,
        n=a.n + b.n,
        n_flagged=a.n_flagged + b.n_flagged,
        max_severity=max(severities, default=None),
        version=max(filter(None, (a.version, b.version)), default=None),
    )
