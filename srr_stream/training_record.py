"""What a training leaves beside its model, for people: what refinement excluded, and some of the rows that it kept.

Nothing here is needed to score. Of the records there are places in the log, votes and labels; and of the rows kept, as
the model sees them: scaled fields, or embeddings of pictures. The records themselves are in the log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from srr_stream.errors import ModelRefused, RegistryError
from srr_stream.sealed_json import seal, unseal

if TYPE_CHECKING:
    from consumers.records import Batch, RawRecord
    from models.refinement import Known
    from models.training import Trained
    from srr_stream.registry import Registry

REFINEMENT = "refinement.json"
NEIGHBOURS = "neighbours.safetensors"
MAX_EXCLUDED = 2000
MAX_NEIGHBOURS = 1000
MAX_BYTES = 32 << 20
"""Of the neighbours: embeddings of large pictures are long."""
RADIUS = "neighbour_radius"
"""Under this name a manifest's `training` has what :attr:`Neighbours.radius` is."""
_NEAR = 0.95
_FORMAT = 1


@dataclass(frozen=True)
class Excluded:
    """A row of the window that nothing was learned from."""

    topic: str
    partition: int
    offset: int
    votes: int
    """How many members of the ensemble reject it."""
    label: str | None = None
    """What a person says of it."""

    @property
    def id(self) -> str:
        """The record's event id."""
        return f"{self.topic}-{self.partition}-{self.offset}"


@dataclass(frozen=True)
class RefinementRecord:
    """What the last refinement of a training did to the window."""

    gamma: float
    """γ, the share that each member rejects."""
    n_subsets: int
    """Members of the ensemble."""
    n_rows: int
    rows_by_votes: tuple[int, ...]
    """How many rows 0, 1, … members reject."""
    n_excluded: int
    excluded: tuple[Excluded, ...]
    """The first 2,000 of them, most votes first."""


@dataclass(frozen=True)
class Neighbours:
    """Rows that a model was fitted on, as points (:meth:`models.detector.Model.coordinates`)."""

    rows: NDArray[np.float32]
    """``(m, d)``."""
    ids: tuple[str, ...]
    """Event ids of the rows."""
    places: tuple[tuple[str, int, int], ...]
    """Topic, partition and offset of the rows."""

    @property
    def radius(self) -> float:
        """How near normal records are to each other: see :func:`typical_distance`."""
        return typical_distance(self.rows)


def make_refinement(trained: Trained, batch: Batch, known: Known | None = None) -> RefinementRecord:
    """Return what the last refinement did to the rows of a window."""
    rows = np.flatnonzero(~trained.kept)
    rows = rows[np.argsort(-trained.votes[rows], kind="stable")]
    report = trained.report
    return RefinementRecord(
        report.gamma,
        report.n_subsets,
        len(trained.kept),
        tuple(np.bincount(trained.votes, minlength=report.n_subsets + 1).tolist()),
        len(rows),
        tuple(
            Excluded(
                *_place(batch.raw[row]),
                int(trained.votes[row]),
                "anomaly" if known is not None and known.is_anomaly[row] else None,
            )
            for row in rows[:MAX_EXCLUDED].tolist()
        ),
    )


def make_neighbours(trained: Trained, batch: Batch, seed: int) -> Neighbours:
    """Draw up to 1,000 of the rows that were kept, fewer if they would take more than 32 MB."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(trained.kept))[:MAX_NEIGHBOURS]
    if not len(rows):
        return Neighbours(np.empty((0, 0), dtype=np.float32), (), ())
    width = trained.model.coordinates(_of(batch, rows[:1])).shape[1]
    rows = np.sort(rows[: max(1, MAX_BYTES // (4 * max(1, width)))])
    places = tuple(_place(batch.raw[row]) for row in rows.tolist())
    return Neighbours(trained.model.coordinates(_of(batch, rows)), tuple(f"{t}-{p}-{o}" for t, p, o in places), places)


def typical_distance(rows: NDArray[np.float32]) -> float:
    """Return the distance within which 95 % of the rows have another one; 0.0 of fewer than two.

    Parameters
    ----------
    rows
        ``(m, d)``. Time grows with m² d.

    Examples
    --------
    >>> typical_distance(np.array([[0.0], [1.0], [2.0], [9.0]], dtype=np.float32)) > 1.0
    True
    >>> typical_distance(np.zeros((5, 2), dtype=np.float32))
    0.0
    """
    if len(rows) < 2:
        return 0.0
    return float(np.quantile(nearest(rows, rows, is_same=True)[1], _NEAR))


def nearest(
    points: NDArray[np.float32], rows: NDArray[np.float32], *, is_same: bool = False
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return which of ``(m, d)`` rows is nearest to each of ``(n, d)`` points, and its Euclidean distance, ``(n,)``.

    Parameters
    ----------
    is_same
        The points are the rows: each is compared with the others. Needs m ≥ 2; else m ≥ 1.
    """
    centre = rows.mean(axis=0, dtype=np.float64)
    P, R = points - centre, rows - centre
    squared = (P**2).sum(axis=1)[:, None] - 2.0 * (P @ R.T) + (R**2).sum(axis=1)[None, :]
    if is_same:
        np.fill_diagonal(squared, np.inf)
    which = squared.argmin(axis=1)
    # From the difference itself: in the sum above small distances drown.
    return which, np.sqrt(((points.astype(np.float64) - rows[which]) ** 2).sum(axis=1))


# --- in the registry --------------------------------------------------------------------------------------------------


def to_files(refinement: RefinementRecord, neighbours: Neighbours) -> dict[str, bytes]:
    """Return name → content of what is published beside a model."""
    import safetensors.numpy

    topics = sorted({topic for topic, _, _ in neighbours.places})
    arrays: dict[str, NDArray[Any]] = {
        "rows": neighbours.rows,
        "topics": np.frombuffer(json.dumps(topics).encode(), dtype=np.uint8),
        "topic": np.array([topics.index(topic) for topic, _, _ in neighbours.places], dtype=np.int64),
        "partition": np.array([partition for _, partition, _ in neighbours.places], dtype=np.int64),
        "offset": np.array([offset for _, _, offset in neighbours.places], dtype=np.int64),
    }
    content: dict[str, Any] = {"format": _FORMAT, **asdict(refinement)}
    return {REFINEMENT: seal(content), NEIGHBOURS: safetensors.numpy.save(arrays)}


def load_refinement(registry: Registry, version: int) -> RefinementRecord | None:
    """Return what refinement did in the training of a version; None if the version does not tell.

    Raises
    ------
    ModelRefused
        If the file is altered, torn, or of another format.
    RegistryError
        If the registry cannot be read, or there is no such version.
    """
    raw = registry.beside(version, REFINEMENT)
    if raw is None:
        return None
    try:
        content = unseal(raw)
        _check_format(content)
        return RefinementRecord(
            float(content["gamma"]),
            int(content["n_subsets"]),
            int(content["n_rows"]),
            tuple(map(int, content["rows_by_votes"])),
            int(content["n_excluded"]),
            tuple(Excluded(**row) for row in content["excluded"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ModelRefused(f"version {version}: {REFINEMENT} cannot be read: {error}", reason="format") from error


def load_neighbours(registry: Registry, version: int) -> Neighbours | None:
    """Return some of the rows that a version was fitted on; None if the version has none beside it.

    Raises
    ------
    ModelRefused
        If the file is altered, torn, or of another format.
    RegistryError
        If the registry cannot be read, or there is no such version.
    """
    import safetensors
    import safetensors.numpy

    raw = registry.beside(version, NEIGHBOURS)
    if raw is None:
        return None
    try:
        arrays = safetensors.numpy.load(raw)
        rows, topics = arrays["rows"], json.loads(arrays["topics"].tobytes())
        columns = [arrays[name].tolist() for name in ("topic", "partition", "offset")]
        places = tuple((topics[topic], partition, offset) for topic, partition, offset in zip(*columns, strict=True))
        if rows.shape[:1] != (len(places),) or rows.ndim != 2:
            raise ValueError(f"{len(places)} ids of rows of shape {rows.shape}")
    except (LookupError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise ModelRefused(f"version {version}: {NEIGHBOURS} cannot be read: {error}", reason="format") from error
    return Neighbours(rows, tuple(f"{t}-{p}-{o}" for t, p, o in places), places)


def nearest_normals(
    registry: Registry, version: int, point: NDArray[np.float32], n: int
) -> tuple[list[tuple[str, tuple[str, int, int], float]], str | None]:
    """Return id, place and distance of the `n` normal records of a training that are nearest to a point.

    Nearest first; of none, why there are none. The point is ``(d,)``, in the space in which the version compares.
    """
    try:
        neighbours = load_neighbours(registry, version)
    except RegistryError as error:
        return [], str(error)
    if neighbours is None or not len(neighbours.rows):
        return [], f"version {version} has kept no normal records to compare with"
    if neighbours.rows.shape[1:] != point.shape:
        return [], f"what version {version} has kept does not fit its model"
    distance = np.linalg.norm(neighbours.rows.astype(np.float64) - point, axis=1)
    rows: list[int] = np.argsort(distance, kind="stable")[:n].tolist()
    return [(neighbours.ids[row], neighbours.places[row], float(distance[row])) for row in rows], None


def radius_of(training: Mapping[str, Any]) -> float:
    """Return how near normal records are to each other, of a manifest's `training`; 0.0 if it does not tell."""
    radius = training.get(RADIUS, 0.0)
    return float(radius) if isinstance(radius, int | float) and 0.0 <= radius < np.inf else 0.0


def _check_format(content: Mapping[str, Any]) -> None:
    if content.get("format") != _FORMAT:
        raise ValueError(f"its format is {content.get('format')!r}; this program reads {_FORMAT}")


def _of(batch: Batch, rows: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
    return {name: column[rows] for name, column in batch.features.items()}


def _place(record: RawRecord) -> tuple[str, int, int]:
    return record.topic, record.partition, record.offset


def match(batch: Sequence[RawRecord], labels: Mapping[tuple[str, int, int], str]) -> Known:
    """Return what labels say of the records of a window.

    Parameters
    ----------
    labels
        Topic, partition and offset of a record → what a person says of it.
    """
    from models.refinement import Known

    said = [labels.get(_place(record)) for record in batch]
    return Known(
        np.array([name == "anomaly" for name in said], dtype=bool),
        np.array([name == "normal" for name in said], dtype=bool),
    )
