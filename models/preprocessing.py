"""Fields to one float32 matrix: scaling, categories, missing values. The first half of g(x)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.state import Columns, State

SCALINGS = ("standard", "robust", "asinh")
MAX_CATEGORIES = 64
SURPRISE = 5.0
"""What a thing never seen in training weighs, in deviations: a category, a missing value, a constant that moved."""
SOFT_LIMIT = 20.0
"""Deviations beyond which a value grows only logarithmically: no absurd value overflows, and more stays more."""
_HARD_LIMIT = 1e12
NEVER_SEEN = "never seen before"
N_CANARY_ROWS = 16
_FEW_ROWS = 4096
_INFINITE = "field {!r} holds an infinite value; allowed: finite numbers, NaN where missing"
ASINH_UNIT = 1.5
"""Deviations up to which ``asinh`` scaling is about linear; beyond, a value grows as its logarithm."""


@dataclass(frozen=True)
class NumericField:
    """How a numeric or boolean field is scaled: to ``(value - center) / scale``, compressed if `is_compressed`.

    Its encoding is one column, and a second one, 1 where the value is missing, if missing values were seen.
    """

    name: str
    center: float
    scale: float
    low: float
    high: float
    """Smallest and greatest value seen."""
    has_missing: bool
    is_compressed: bool = False
    """Far values are drawn in by c asinh(z / c), so that one wild field does not drown the others."""

    @property
    def width(self) -> int:
        """How many columns of the matrix are this field's."""
        return 2 if self.has_missing else 1

    def decode(self, encoded: NDArray[np.float64]) -> list[float | str | None]:
        """Return the values that ``(n, width)`` encodings stand for, within what was seen."""
        z = np.clip(encoded[:, 0], -_HARD_LIMIT, _HARD_LIMIT)
        if self.is_compressed:
            z = ASINH_UNIT * np.sinh(np.clip(z / ASINH_UNIT, -50.0, 50.0))
        values = np.clip(z * self.scale + self.center, self.low, self.high)
        return [float(v) for v in values]


@dataclass(frozen=True)
class CategoricalField:
    """How a categorical field is encoded: one column for each frequent value, and a last one for all others.

    A missing value (None) is a value like any other. `is_rest_seen`: whether rarer values were seen than those listed.
    """

    name: str
    categories: tuple[str | None, ...]
    is_rest_seen: bool

    @property
    def width(self) -> int:
        """How many columns of the matrix are this field's."""
        return len(self.categories) + 1

    def encode(self, column: NDArray[Any], out: NDArray[np.float32]) -> None:
        """Write ``(n,)`` values to ``(n, width)`` columns."""
        slot = {value: index for index, value in enumerate(self.categories)}
        rest = len(self.categories)
        codes = np.array([slot.get(value, rest) for value in column.tolist()], dtype=np.intp)
        out[:] = 0.0
        out[np.arange(len(column)), codes] = 1.0
        if not self.is_rest_seen:
            out[:, rest] *= SURPRISE

    def decode(self, encoded: NDArray[np.float64]) -> list[float | str | None]:
        """Return the listed value whose column is largest, for ``(n, width)`` encodings."""
        if not self.categories:
            return [None] * len(encoded)
        return [self.categories[code] for code in encoded[:, :-1].argmax(axis=1)]


EncodedField = NumericField | CategoricalField


class Preprocessor:
    """Turn columns into a matrix as it was fitted on the training rows.

    Numbers become z-scores by the statistics of the contaminated training rows (quantiles would flatten the tails that
    carry the signal); columns of zeros and ones stay as they are. A constant column, of which no scale is known, counts
    a change by its own size, or by 1 if it is smaller, as `SURPRISE` deviations.

    Parameters
    ----------
    fields
        In the order of the matrix's columns.
    """

    def __init__(self, fields: tuple[EncodedField, ...]) -> None:
        self.fields = fields
        stops = np.cumsum([field.width for field in fields]).tolist()
        self.slots = tuple(slice(stop - field.width, stop) for field, stop in zip(fields, stops, strict=True))
        """Which columns of the matrix belong to which field."""
        self.n_columns = int(stops[-1]) if stops else 0
        self._scaling = _Scaling(tuple(field for field in fields if isinstance(field, NumericField)))

    @classmethod
    def fit(cls, columns: Columns, *, scaling: str = "standard", max_categories: int = MAX_CATEGORIES) -> Preprocessor:
        """Learn scales and categories.

        Parameters
        ----------
        columns
            Field → ``(n,)``, n ≥ 1; object dtype is categorical.
        scaling
            ``standard``: mean and deviation; ``robust``: median and interquartile range / 1.349 (the deviation where
            that range is 0); ``asinh``: as ``robust``, with far values drawn in.
        max_categories
            At most so many values of a field get a column of their own, the most frequent ones.

        Raises
        ------
        ValueError
            If there is no field or no row, lengths differ, a dtype is neither object nor numeric, or a value is
            infinite.
        """
        if scaling not in SCALINGS:
            raise ValueError(f"scaling is {scaling!r}; allowed: {', '.join(SCALINGS)}")
        if not columns or not row_count(columns):
            raise ValueError("columns: need at least one field and one row to learn from")
        fields: list[EncodedField] = []
        for name, column in columns.items():
            if column.dtype == object:
                fields.append(_fit_categorical(name, column, max_categories))
            else:
                fields.append(_fit_numeric(name, as_numbers(name, column), scaling))
        return cls(tuple(fields))

    @property
    def names(self) -> tuple[str, ...]:
        """The fields' names, in order."""
        return tuple(field.name for field in self.fields)

    def transform(self, columns: Columns) -> NDArray[Any]:
        """Return the matrix of the columns, ``(n, n_columns)``, finite for every finite or missing input.

        Raises
        ------
        ValueError
            If a field is missing, has another length or kind than the others or than when fitted, or is infinite.
        """
        lost = [name for name in self.names if name not in columns]
        if lost:
            raise ValueError(f"columns: fields {lost} are missing; needed: {list(self.names)}")
        columns = {name: columns[name] for name in self.names}
        X = np.empty((row_count(columns), self.n_columns), dtype=np.float32)
        numeric: list[tuple[NDArray[Any], slice]] = []
        for field, slot in zip(self.fields, self.slots, strict=True):
            column = columns[field.name]
            if isinstance(field, NumericField):
                numeric.append((column if column.dtype.kind in "fiub" else as_numbers(field.name, column), slot))
            elif column.dtype != object:
                raise ValueError(f"field {field.name!r} has dtype {column.dtype}; allowed: object (str or None)")
            else:
                field.encode(column, X[:, slot])
        # Of few rows all fields together, since every call costs more than its numbers; of many, what the cache holds.
        n_together = max(1, len(numeric) if len(X) <= _FEW_ROWS else 1)
        for first in range(0, len(numeric), n_together):
            part = slice(first, first + n_together)
            z, is_missing = self._scaling.of(np.array([column for column, _ in numeric[part]], dtype=np.float64), part)
            for (_, slot), *encoded in zip(numeric[part], z, is_missing, strict=True):
                for place, values in zip(range(slot.start, slot.stop), encoded, strict=False):
                    X[:, place] = values
        return X

    def has_layout_of(self, other: object) -> bool:
        """Return whether column j of the matrix means the same thing in both."""
        return isinstance(other, Preprocessor) and _layout(self) == _layout(other)

    def canary(self) -> dict[str, NDArray[Any]]:
        """Return made-up rows: from the marginals, missing values, values never seen.

        Fields are drawn independently of each other, so that no row of the training data is in it.
        """
        rng = np.random.default_rng(0)
        rows: dict[str, NDArray[Any]] = {}
        for part in self.fields:
            if isinstance(part, NumericField):
                numbers = part.center + part.scale * rng.normal(size=N_CANARY_ROWS)
                numbers[-3:] = part.high + 100.0 * part.scale, part.low - 1.0, np.nan
                rows[part.name] = numbers
            else:
                values: list[str | None] = [NEVER_SEEN] * N_CANARY_ROWS
                if part.categories:
                    values[:-3] = [
                        part.categories[i] for i in rng.integers(len(part.categories), size=N_CANARY_ROWS - 3)
                    ]
                values[-1] = None
                column = np.empty(N_CANARY_ROWS, dtype=object)
                column[:] = values
                rows[part.name] = column
        return rows

    def describe(self) -> dict[str, Any]:
        """Return what people want to know of it, as JSON."""
        return {"fields": list(self.names), "n_columns": self.n_columns}

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        return State(
            {
                "fields": [
                    {"kind": "numeric", **vars(field)}
                    if isinstance(field, NumericField)
                    else {"kind": "categorical", **vars(field), "categories": list(field.categories)}
                    for field in self.fields
                ]
            }
        )

    @classmethod
    def from_state(cls, state: State) -> Preprocessor:
        """Read what :meth:`state` returned; ValueError if it is something else."""
        fields: list[EncodedField] = []
        try:
            for values in state.values["fields"]:
                values = dict(values)
                if values.pop("kind") == "numeric":
                    fields.append(NumericField(**values))
                else:
                    fields.append(CategoricalField(**{**values, "categories": tuple(values["categories"])}))
        except (KeyError, TypeError) as error:
            raise ValueError(f"preprocessing does not fit: {error!r}") from error
        return cls(tuple(fields))


class _Scaling:
    """The scales of numeric fields, one below the other, so that fields can be scaled together."""

    def __init__(self, fields: tuple[NumericField, ...]) -> None:
        self._names = [field.name for field in fields]
        self._centers = np.array([[field.center] for field in fields])
        self._scales = np.array([[field.scale] for field in fields])
        self._is_compressed = np.array([field.is_compressed for field in fields], dtype=np.bool_)
        # Where values were always there, a missing one is as odd as any surprise; else it has a column of its own.
        self._missing = np.array([[0.0 if field.has_missing else SURPRISE] for field in fields])

    def of(self, values: NDArray[np.float64], part: slice) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return ``(k, n)`` values of a part of the fields scaled, and which are missing.

        Raises
        ------
        ValueError
            If a field is infinite; names it.
        """
        is_infinite = np.isinf(values)
        if is_infinite.any():
            raise ValueError(_INFINITE.format(self._names[part][int(is_infinite.any(axis=1).argmax())]))
        is_compressed = self._is_compressed[part]
        with np.errstate(over="ignore"):
            z = (values - self._centers[part]) / self._scales[part]
        is_far = np.abs(z) > SOFT_LIMIT
        if is_compressed.any():
            drawn_in = np.clip(z[is_compressed], -_HARD_LIMIT, _HARD_LIMIT) / ASINH_UNIT
            z[is_compressed] = ASINH_UNIT * np.arcsinh(drawn_in)
            is_far[is_compressed] = False
        if is_far.any():  # hardly ever, and logarithms take their time
            far = np.clip(z[is_far], -_HARD_LIMIT, _HARD_LIMIT)
            z[is_far] = np.sign(far) * (SOFT_LIMIT + np.log1p(np.abs(far) - SOFT_LIMIT))
        is_missing = np.isnan(values)
        return np.where(is_missing, self._missing[part], z) if is_missing.any() else z, is_missing


def row_count(columns: Columns) -> int:
    """Return how many rows the columns have; ValueError naming the fields if they do not agree."""
    shapes = {name: column.shape for name, column in columns.items()}
    if len({shape[:1] for shape in shapes.values()}) > 1 or any(len(shape) not in (1, 4) for shape in shapes.values()):
        raise ValueError(f"columns: fields must be (n,) with one n, or pictures (n, h, w, channels), got {shapes}")
    return int(next(iter(shapes.values()))[0]) if shapes else 0


def as_numbers(name: str, column: NDArray[Any]) -> NDArray[np.float64]:
    """Return a numeric or boolean column as float64; ValueError naming the field if it is none, or infinite."""
    if column.dtype.kind not in "fiub":
        raise ValueError(f"field {name!r} has dtype {column.dtype}; allowed: float64 (NaN where missing)")
    numbers = column.astype(np.float64, copy=False)
    if np.isinf(numbers).any():
        raise ValueError(_INFINITE.format(name))
    return numbers


def _fit_numeric(name: str, column: NDArray[np.float64], scaling: str) -> NumericField:
    values = column[~np.isnan(column)]
    has_missing = len(values) < len(column)
    if not len(values):
        return NumericField(name, 0.0, 1.0 / SURPRISE, 0.0, 0.0, has_missing)
    low, high = float(values.min()), float(values.max())
    if low == high:
        return NumericField(name, low, max(abs(low), 1.0) / SURPRISE, low, high, has_missing)
    if np.isin(values, (0.0, 1.0)).all():
        return NumericField(name, 0.0, 1.0, low, high, has_missing)
    # Squares of values near the end of float64 overflow, so the statistics are taken in units of the largest.
    unit = max(abs(low), abs(high))
    scaled = values / unit
    center, scale = float(scaled.mean()), float(scaled.std())
    if scaling != "standard":
        lower, center, upper = (float(q) for q in np.quantile(scaled, (0.25, 0.5, 0.75)))
        scale = (upper - lower) / 1.349 or scale
    scale = max(scale * unit, np.finfo(np.float64).tiny)
    return NumericField(name, center * unit, scale, low, high, has_missing, scaling == "asinh")


def _fit_categorical(name: str, column: NDArray[Any], max_categories: int) -> CategoricalField:
    counts: dict[str | None, int] = {}
    for value in column.tolist():
        if value is not None and not isinstance(value, str):
            raise ValueError(f"field {name!r} holds {value!r}; allowed in a categorical field: str or None")
        counts[value] = counts.get(value, 0) + 1
    ordered = sorted(counts, key=lambda value: (-counts[value], value is not None, value or ""))
    # In the order of names, not of counts: the next window has the same columns if it has the same values.
    listed = sorted(ordered[:max_categories], key=lambda value: (value is not None, value or ""))
    return CategoricalField(name, tuple(listed), len(ordered) > max_categories)


def _layout(preprocessor: Preprocessor) -> list[tuple[Any, ...]]:
    return [
        (f.name, f.has_missing) if isinstance(f, NumericField) else (f.name, *f.categories) for f in preprocessor.fields
    ]
