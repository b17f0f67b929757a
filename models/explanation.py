"""Why a row scored as it did: what each field adds, what was seen and what the other fields led to expect.

Expectations come from one Gaussian over the scaled fields of the refined rows, whatever the representation is. For the
identity representation the contributions are exact; for others a field's contribution is how far the score falls when
its value is replaced by the expected one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.occ import OneClassClassifier
from models.occ.gde import GDE
from models.preprocessing import CategoricalField, NumericField, Preprocessor
from models.representations import Representation
from models.representations.identity import Identity
from models.state import Columns, State

N_CANDIDATES = 12
"""Fields whose replacement is tried where contributions are not exact; the others' Gaussian contribution is smaller."""
_CHUNK_ROWS = 256


class FieldContribution(NamedTuple):
    """One field's part in a score."""

    field: str
    contribution: float
    """Nats by which the score would fall if the value were the expected one."""
    observed: float | str | None
    expected: float | str | None


@dataclass(frozen=True)
class Explainer:
    """A Gaussian over scaled fields: mean ``(d,)`` and precision ``(d, d)``."""

    mean: NDArray[np.float64]
    precision: NDArray[np.float64]

    @classmethod
    def fit(cls, X: NDArray[np.float32]) -> Explainer:
        """Fit to the refined rows ``(n, d)``."""
        state = GDE(shrinkage=Identity.shrinkage).fit(X).state()
        whiten = state.arrays["whiten"][0]
        return cls(state.arrays["mean"][0], whiten @ whiten.T)

    def explain(
        self,
        X: NDArray[np.float32],
        columns: Columns,
        preprocessor: Preprocessor,
        representation: Representation,
        classifier: OneClassClassifier,
        n_top: int,
    ) -> list[tuple[FieldContribution, ...]]:
        """Return the `n_top` greatest contributions of every row of ``(n, d)``, whose raw values are `columns`."""
        explained: list[tuple[FieldContribution, ...]] = []
        for start in range(0, len(X), _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            part = {name: columns[name][rows] for name in preprocessor.names}
            contributions, expected = self.decompose(X[rows], preprocessor)
            if representation.name != "identity":
                contributions = _occlude(X[rows], expected, contributions, preprocessor, representation, classifier)
            explained += _top(contributions, expected, part, preprocessor, n_top)
        return explained

    def decompose(
        self, X: NDArray[np.float32], preprocessor: Preprocessor
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return each field's Gaussian contribution ``(n, n_fields)`` and expected encoding ``(n, d)``.

        With precision Λ and u = Λ (x - μ), the mean of the columns F given all others is x_F - Λ_FF⁻¹ u_F, and putting
        it in lowers the negative log density by ½ u_Fᵀ Λ_FF⁻¹ u_F.
        """
        u = (X - self.mean) @ self.precision
        contributions = np.empty((len(X), len(preprocessor.fields)))
        expected = np.empty(X.shape)
        for index, slot in enumerate(preprocessor.slots):
            delta = np.linalg.solve(self.precision[slot, slot], u[:, slot].T).T
            expected[:, slot] = X[:, slot] - delta
            contributions[:, index] = 0.5 * np.einsum("nf,nf->n", u[:, slot], delta)
        return contributions, expected

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        return State({}, {"mean": self.mean, "precision": self.precision})

    @classmethod
    def from_state(cls, state: State) -> Explainer:
        """Read what :meth:`state` returned; ValueError if shapes do not fit."""
        mean, precision = state.array("mean", 1), state.array("precision", 2)
        if precision.shape != (len(mean), len(mean)):
            raise ValueError(f"explainer: precision has shape {precision.shape}, mean {mean.shape}")
        return cls(mean, precision)


def _occlude(
    X: NDArray[np.float32],
    expected: NDArray[np.float64],
    gaussian: NDArray[np.float64],
    preprocessor: Preprocessor,
    representation: Representation,
    classifier: OneClassClassifier,
) -> NDArray[np.float64]:
    """Return how far the score falls when a field is replaced, for the likeliest fields of a row; 0 for others."""
    n, n_fields = gaussian.shape
    n_tried = min(N_CANDIDATES, n_fields)
    tried = np.argsort(-gaussian, axis=1, kind="stable")[:, :n_tried]
    replaced = np.repeat(X, n_tried, axis=0)
    row_of = np.repeat(np.arange(n), n_tried)
    for index, slot in enumerate(preprocessor.slots):
        at = np.flatnonzero(tried.ravel() == index)
        replaced[at, slot] = expected[row_of[at], slot]
    before = classifier.score(representation.embed(X))
    after = classifier.score(representation.embed(replaced)).reshape(n, n_tried)
    contributions = np.zeros((n, n_fields))
    np.put_along_axis(contributions, tried, before[:, None] - after, axis=1)
    return contributions


def _top(
    contributions: NDArray[np.float64],
    expected: NDArray[np.float64],
    columns: Columns,
    preprocessor: Preprocessor,
    n_top: int,
) -> list[tuple[FieldContribution, ...]]:
    names = preprocessor.names
    likeliest = [
        field.decode(expected[:, slot]) for field, slot in zip(preprocessor.fields, preprocessor.slots, strict=True)
    ]
    order = np.argsort(-contributions, axis=1, kind="stable")[:, :n_top]
    return [
        tuple(
            FieldContribution(
                names[index],
                float(contributions[row, index]),
                _observed(preprocessor.fields[index], columns[names[index]][row]),
                likeliest[index][row],
            )
            for index in order[row].tolist()
        )
        for row in range(len(order))
    ]


def _observed(field: NumericField | CategoricalField, value: object) -> float | str | None:
    if isinstance(field, CategoricalField):
        return value if isinstance(value, str) else None
    number = float(value)  # type: ignore[arg-type]  # an element of a numeric column
    return None if np.isnan(number) else number
