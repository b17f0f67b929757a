"""Find anomalies in a contaminated, unlabelled stream: self-supervise, refine, repeat, hot-swap, alert.

The public names of the library; the application is the command ``srr-stream``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consumers.records import Field, FieldKind, RecordSchema
    from models.detector import Model, Scores
    from models.estimator import SRRDetector
    from models.persistence import load, save
    from models.river_adapter import RiverSRR
    from models.training import TrainingConfig, train

__all__ = [
    "Field",
    "FieldKind",
    "Model",
    "RecordSchema",
    "RiverSRR",
    "SRRDetector",
    "Scores",
    "TrainingConfig",
    "load",
    "save",
    "train",
]

_HOMES = {
    "consumers.records": ("Field", "FieldKind", "RecordSchema"),
    "models.detector": ("Model", "Scores"),
    "models.estimator": ("SRRDetector",),
    "models.persistence": ("load", "save"),
    "models.river_adapter": ("RiverSRR",),
    "models.training": ("TrainingConfig", "train"),
}


def __getattr__(name: str) -> Any:  # the type of a module's attribute is only known to its home
    """Import a public name when it is asked for: `srr-stream check-config` shall not wait for scikit-learn."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
