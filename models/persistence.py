"""Models as data: a JSON description and safetensors weights. No pickle, so a model file is never code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from models.calibration import Calibration
from models.detector import Model
from models.explanation import Explainer
from models.heat_maps import PictureExplainer
from models.occ import CLASSIFIERS
from models.pictures import PicturePreprocessor
from models.preprocessing import Preprocessor
from models.representations import REPRESENTATIONS
from models.state import State, join, part

FORMAT = 1
DESCRIPTION_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"


def model_to_parts(model: Model) -> tuple[dict[str, Any], bytes]:
    """Return a JSON-able description and safetensors bytes; together they are the model."""
    state = join(
        {
            "preprocessor": model.preprocessor.state(),
            "representation": model.representation.state(),
            "classifier": model.classifier.state(),
            "calibration": model.calibration.state(),
            "explainer": model.explainer.state(),
        }
    )
    description = {"format": FORMAT, **model.describe(), "facts": dict(model.facts), "parts": state.values}
    return description, safetensors.numpy.save({name: _contiguous(array) for name, array in state.arrays.items()})


def model_from_parts(description: Mapping[str, Any], weights: bytes) -> Model:
    """Put a model together again; it scores bit for bit as the one that was written.

    Raises
    ------
    ValueError
        If the format is unknown, something is missing, or shapes do not fit each other.
    """
    if description.get("format") != FORMAT:
        raise ValueError(f"model format is {description.get('format')!r}; this program reads {FORMAT}; train anew")
    try:
        state = State(dict(description["parts"]), safetensors.numpy.load(weights))
        representation = REPRESENTATIONS[description["representation"]]
        classifier = CLASSIFIERS[description["classifier"]]
        takes_pictures = representation.takes == "picture"
        model = Model(
            (PicturePreprocessor if takes_pictures else Preprocessor).from_state(part(state, "preprocessor")),
            representation.from_state(part(state, "representation")),
            classifier.from_state(part(state, "classifier")),
            Calibration.from_state(part(state, "calibration")),
            (PictureExplainer if takes_pictures else Explainer).from_state(part(state, "explainer")),
            float(description["false_alarm_rate"]),
            dict(description["facts"]),
        )
        model.score(model.canary())
    except (LookupError, TypeError, AttributeError, RuntimeError, safetensors.SafetensorError) as error:
        raise ValueError(f"model cannot be read: {error!r}") from error
    return model


def save(model: Model, folder: str | Path) -> None:
    """Write a model's two files into a folder, made if it is not there."""
    description, weights = model_to_parts(model)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / WEIGHTS_FILE).write_bytes(weights)
    (target / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1, allow_nan=False), encoding="utf-8")


def load(folder: str | Path) -> Model:
    """Read what :func:`save` wrote; ValueError if it is no model, FileNotFoundError if there is none."""
    source = Path(folder)
    try:
        description = json.loads((source / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{source / DESCRIPTION_FILE} is not JSON: {error}") from error
    return model_from_parts(description, (source / WEIGHTS_FILE).read_bytes())


def _contiguous(array: Any) -> Any:
    import numpy as np

    return np.ascontiguousarray(array)
