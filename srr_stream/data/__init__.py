"""The data sets that ship with the project, as streams of records with labels that no detector sees.

:mod:`srr_stream.data.fashion_mnist` is one more, which is fetched.
"""

from __future__ import annotations

import gzip
import io
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from consumers.images import require_pillow
from consumers.records import Field, FieldKind, ImageSpec, RecordSchema

DATASETS = ("kdd", "thyroid", "arrhythmia", "boards")
PICTURE_DATASETS = ("boards",)
"""Those of them whose records are pictures."""


@dataclass(frozen=True)
class Dataset:
    """A finite stream of records.

    Examples
    --------
    >>> thyroid = load("thyroid")
    >>> len(thyroid), int(thyroid.is_anomaly.sum()), len(thyroid.schema.fields)
    (3772, 93, 6)
    """

    name: str
    schema: RecordSchema
    n_records: int
    open_values: Callable[[], Iterator[bytes]]
    """Begins the stream anew; :meth:`values` reads better."""
    is_anomaly: NDArray[np.bool_] | None = None
    """``(n_records,)``; None where nobody knows."""
    kinds: tuple[str, ...] | None = None
    """What each record is: ``normal``, or the name of the anomaly; None where nobody knows."""
    format: Literal["json", "image"] = "json"
    """How a record is written: see ``record.format`` of the settings."""

    @classmethod
    def from_values(
        cls,
        name: str,
        schema: RecordSchema,
        values: Sequence[bytes],
        *,
        format: Literal["json", "image"] = "json",
    ) -> Dataset:
        """Return a data set without labels from records that are at hand."""
        return cls(name, schema, len(values), lambda: iter(values), format=format)

    @classmethod
    def from_pictures(cls, name: str, pixels: NDArray[np.uint8], spec: ImageSpec, kinds: Sequence[str]) -> Dataset:
        """Return a data set of pictures that are at hand.

        Parameters
        ----------
        pixels
            ``(n, h, w)``, grey. Each becomes the file of a PNG.
        kinds
            ``(n,)``: ``normal``, or the name of the anomaly.

        Raises
        ------
        LibraryMissing
            If Pillow is not installed.
        """
        require_pillow()
        return cls(
            name,
            RecordSchema((Field("picture", FieldKind.IMAGE, image=spec),)),
            len(pixels),
            lambda: map(_to_png, pixels),
            np.array([kind != "normal" for kind in kinds], dtype=np.bool_),
            tuple(kinds),
            "image",
        )

    @property
    def has_pictures(self) -> bool:
        """Whether a record is a picture, or has one."""
        return self.schema.image_field is not None

    def __len__(self) -> int:
        return self.n_records

    def values(self) -> Iterator[bytes]:
        """Yield the records, JSON objects or PNGs, in the order of the stream; made as they are asked for."""
        return self.open_values()


def load(name: str) -> Dataset:
    """Return the shipped data set `name`: see the README beside this file for what they are and where they come from.

    Raises
    ------
    ValueError
        If there is none of this name.
    LibraryMissing
        If its records are pictures and Pillow is not installed.
    """
    if name not in DATASETS:
        raise ValueError(f"data set {name!r} is not shipped; allowed: {', '.join(DATASETS)}")
    return _load_pictures(name) if name in PICTURE_DATASETS else _load_table(name)


def _load_table(name: str) -> Dataset:
    text = gzip.decompress(files(__name__).joinpath(f"{name}.columns.gz").read_bytes()).decode("ascii")
    *lines, (_, _, *labels) = [line.split(",") for line in text.splitlines()]
    fields = [Field(field_name, FieldKind(kind)) for field_name, kind, *_ in lines]
    columns = [_shared(values) for _, _, *values in lines]
    template = "{" + ",".join(f'"{field.name}":%s' for field in fields) + "}"
    kinds = tuple(_shared(labels))
    return Dataset(
        name,
        RecordSchema(tuple(fields)),
        len(kinds),
        lambda: ((template % row).encode() for row in zip(*columns, strict=True)),
        np.array([kind != "normal" for kind in kinds], dtype=np.bool_),
        kinds,
    )


def _load_pictures(name: str) -> Dataset:
    content = io.BytesIO(lzma.decompress(files(__name__).joinpath(f"{name}.pictures.xz").read_bytes()))
    pixels, kinds = (np.load(content, allow_pickle=False) for _ in range(2))
    _, height, width = pixels.shape
    return Dataset.from_pictures(name, pixels, ImageSpec(width, height, "grey", "exact"), kinds.tolist())


def _to_png(pixels: NDArray[np.uint8]) -> bytes:
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _shared(values: list[str]) -> list[str]:
    """Return equal texts as one object: a column has few different values, and millions of copies take space."""
    seen: dict[str, str] = {}
    return [seen.setdefault(value, value) for value in values]
