"""What the demo does with a data set: how it is replayed, and the settings of the service that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consumers.records import Field, FieldKind
from srr_stream.data import Dataset
from srr_stream.demo.replay import MALFORMED_EVERY
from srr_stream.loading import check_settings
from srr_stream.settings import Settings

EVENTS, SCORES, ALERTS, DEAD = "demo.events", "demo.scores", "demo.alerts", "demo.dead-letters"

_REPLAY_S = 75.0
"""How long the replay shall take if no rate is given: long enough to see trainings and swaps under way."""
_MAX_RATE = 2000
_PICTURES_REPLAY_S = 200.0
"""The same for pictures, beside whose training the time of scoring is nothing."""
_PICTURES_AT_ONCE, _PICTURES_HOLD_AT = 0.5, 0.65
"""Parts of the stream: in the log before anything else, so that there is enough to train on; and before the trained
model is live, so that enough is left for it on a slow machine too."""
_MALFORMED_PICTURES_EVERY = 250
_REPRESENTATION_OF = {"boards": "cutpaste"}
_OTHER_PICTURES = "contrastive"


@dataclass(frozen=True)
class Plan:
    """How a data set is replayed, and what is learned of it."""

    rate: int
    """Records a second."""
    n_at_once: int
    hold_at: int | None
    """See :class:`srr_stream.demo.replay.Replay`."""
    malformed_every: int
    window: dict[str, Any]
    training: dict[str, Any]
    """Sections of the settings."""


def plan_of(dataset: Dataset, *, rate: int | None = None, is_spoilt: bool = True) -> Plan:
    """Return the plan for a data set.

    Parameters
    ----------
    rate
        Records a second; None: as many as suit.
    is_spoilt
        Whether some records are malformed on purpose: not of somebody's own, of which nothing is known.
    """
    plan = _plan_of_pictures if dataset.has_pictures else _plan_of_fields
    return plan(dataset, rate, is_spoilt=is_spoilt)


def _plan_of_fields(dataset: Dataset, rate: int | None, *, is_spoilt: bool) -> Plan:
    """A first model early, then a training each eighth."""
    n_records = len(dataset)
    min_size = max(50, min(2000, n_records // 6))
    return Plan(
        rate=rate or max(20, min(_MAX_RATE, round(n_records / _REPLAY_S))),
        n_at_once=0,
        hold_at=None,
        malformed_every=MALFORMED_EVERY if is_spoilt else n_records + 1,
        window={"min_size": min_size, "max_size": max(min_size, min(20_000, n_records))},
        training={"every_records": max(50, n_records // 8), "nice": 5},
    )


def _plan_of_pictures(dataset: Dataset, rate: int | None, *, is_spoilt: bool) -> Plan:
    """A first model and a trained one of what is there at the start, by the time that the stream goes on."""
    n_records = len(dataset)
    n_at_once = int(n_records * _PICTURES_AT_ONCE)
    n_least = int(0.95 * n_at_once) if is_spoilt else n_at_once // 3  # nobody knows how many of his own are bad
    return Plan(
        rate=rate or max(1, round((n_records - n_at_once) / _PICTURES_REPLAY_S)),
        n_at_once=n_at_once,
        hold_at=int(n_records * _PICTURES_HOLD_AT) if is_spoilt else None,
        malformed_every=_MALFORMED_PICTURES_EVERY if is_spoilt else n_records + 1,
        window={"min_size": max(50, n_least), "max_size": max(50, n_records)},
        training={
            "representation": _REPRESENTATION_OF.get(dataset.name, _OTHER_PICTURES),
            "every_records": None,
            "on_drift": False,  # one training of minutes is what there is time for
            "nice": 5,
        },
    )


def demo_settings(
    dataset: Dataset,
    plan: Plan,
    *,
    bootstrap_servers: str,
    folder: Path,
    scorer_port: int = 0,
    trainer_port: int = 0,
) -> Settings:
    """Return the settings of a demo; nothing of the environment is in them."""
    return check_settings(
        {
            "kafka": {"bootstrap_servers": bootstrap_servers},
            "input": {"topics": [EVENTS], "start": "earliest", "session_timeout": "6s", "max_batch": 1000},
            "record": {
                "format": dataset.format,
                "fields": [_field(each) for each in dataset.schema.fields],
                "time_field": dataset.schema.time_field,
            },
            "output": {"scores_topic": SCORES, "alerts_topic": ALERTS, "dead_letter_topic": DEAD},
            "window": plan.window,
            "training": {"every": None, "min_interval": "10s", "check_every": "200ms", **plan.training},
            "registry": {"url": str(folder / "registry"), "keep": 50, "poll_every": "200ms"},
            "http": {"host": "127.0.0.1", "scorer_port": scorer_port, "trainer_port": trainer_port},
        },
        use_environment=False,
    )


def _field(field: Field) -> dict[str, Any]:
    made = {
        "name": field.name,
        "kind": FieldKind(field.kind).value,
        "path": ".".join(field.path),
        "required": field.is_required,
    }
    if field.image is None:
        return made
    image = field.image
    return made | {"size": [image.width, image.height], "mode": image.mode, "resize": image.resize}
