"""Make the data sets that srr-stream ships from the raw ones: ``SRR_DATA_DIR=… python benchmarks/make_datasets.py``.

A set of fields is one gzip'd text with a line per field: name, kind, then every record's value as a JSON literal,
separated by commas; the last line holds the labels. Values of a field lie side by side, which compresses better than
rows. A set of pictures is two NumPy arrays in one xz file: pixels, labels. The same raw files give the same bytes with
every run (no time is written; two builds of zlib or liblzma may differ).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import lzma
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

SEED = 0
N_NORMAL = 60_000
MAX_ATTACK_RATIO = 0.03
NORMAL, ANOMALY = "normal", "anomaly"
KDD_TEXTS = ("protocol_type", "service", "flag")
KDD_CATEGORICAL = (*KDD_TEXTS, "land", "logged_in", "is_host_login", "is_guest_login")
N_NORMAL_PATCHES, DEFECTIVE_RATIO = 3000, 0.05
DEFECTS = (NORMAL, "open", "short", "mousebite", "spur", "spurious copper", "pin-hole")
"""Names of DeepPCB's numbers."""


@dataclass(frozen=True)
class Table:
    """A data set in columns of JSON literals, with the label of every record."""

    suffix: ClassVar[str] = "columns.gz"
    names: Sequence[str]
    kinds: Sequence[str]
    columns: Sequence[Sequence[str]]
    labels: Sequence[str]

    def to_bytes(self) -> bytes:
        """Return the file that ships."""
        fields = [
            ",".join([name, kind, *column])
            for name, kind, column in zip(self.names, self.kinds, self.columns, strict=True)
        ]
        text = "\n".join([*fields, ",".join(["label", "label", *self.labels])]) + "\n"
        return gzip.compress(text.encode(), 9, mtime=0)


@dataclass(frozen=True)
class Pictures:
    """A data set of grey pictures, with the label of every one."""

    suffix: ClassVar[str] = "pictures.xz"
    names: ClassVar[Sequence[str]] = ("picture",)
    pixels: NDArray[np.uint8]
    """``(n, h, w)``."""
    labels: Sequence[str]

    def to_bytes(self) -> bytes:
        """Return the file that ships."""
        content = io.BytesIO()
        np.save(content, self.pixels)
        np.save(content, np.array(self.labels))
        return lzma.compress(content.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def kdd(folder: Path) -> Table:
    """Return the first 60,000 normal connections with the attacks recorded between them, floods cut short."""
    with gzip.open(folder / "kddcup99_10percent.csv.gz", "rt", encoding="ascii") as file:
        *names, _ = next(file).rstrip("\n").split(",")
        rows = up_to_normal((line.rstrip(".\n").split(",") for line in file), N_NORMAL)
    *columns, labels = zip(*thinned(rows, MAX_ATTACK_RATIO), strict=True)
    kinds = ["categorical" if name in KDD_CATEGORICAL else "numeric" for name in names]
    literals = [
        [f'"{value}"' if name in KDD_TEXTS else shortest(value) for value in column]
        for name, column in zip(names, columns, strict=True)
    ]
    return Table(names, kinds, literals, labels)


def up_to_normal(rows: Iterable[Sequence[str]], n_normal: int) -> list[Sequence[str]]:
    """Return the rows up to and with the `n_normal`-th normal one; later ones are not read."""
    taken, seen = [], 0
    for row in rows:
        taken.append(row)
        seen += row[-1] == NORMAL
        if seen == n_normal:
            return taken
    raise ValueError(f"{seen} normal rows; {n_normal} are needed")


def thinned(rows: Sequence[Sequence[str]], max_ratio: float) -> list[Sequence[str]]:
    """Cut every run of one attack to its first `cap` rows; the greatest cap with at most `max_ratio` attacks.

    A run is what stands together under one label. Floods are runs of thousands, so it is they that are cut: every run,
    and with it every kind, remains, at its place and in its order.
    """
    runs = [(label, list(run)) for label, run in groupby(rows, key=lambda row: row[-1])]
    n_normal = sum(len(run) for label, run in runs if label == NORMAL)
    lengths = [len(run) for label, run in runs if label != NORMAL]
    n_allowed = int(n_normal * max_ratio / (1 - max_ratio))
    cap = max((cap for cap in range(max(lengths) + 1) if sum(min(n, cap) for n in lengths) <= n_allowed), default=0)
    print(f"kdd: {len(lengths)} attack runs, each cut to its first {cap} connections", file=sys.stderr)
    return [row for label, run in runs for row in (run if label == NORMAL else run[:cap])]


def shortest(number: str) -> str:
    """Return a number without what says nothing: 0.50 → 0.5, 1.00 → 1."""
    return number.rstrip("0").rstrip(".") if "." in number else number


def shuffled(folder: Path, name: str) -> Table:
    """Return a set without a time, in a random order that depends on nothing but the seed."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as raw:
        order = np.random.default_rng(SEED).permutation(len(raw["y"]))
        X, y = raw["X"][order], raw["y"][order]
    names = [f"x{i + 1}" for i in range(X.shape[1])]  # the source has no names
    columns = [[np.format_float_positional(value, trim="-") for value in column] for column in X.T]
    return Table(names, ["numeric"] * len(names), columns, [ANOMALY if is_anomaly else NORMAL for is_anomaly in y])


def boards(folder: Path) -> Pictures:
    """Return patches of circuit boards in a random order, 5 % of them with a defect."""
    rng = np.random.default_rng(SEED)
    n_defective = round(N_NORMAL_PATCHES * DEFECTIVE_RATIO / (1 - DEFECTIVE_RATIO))
    with np.load(folder / "deeppcb_patches.npz", allow_pickle=False) as raw:
        defect = raw["defect"]
        normal = rng.choice(np.flatnonzero(defect == 0), N_NORMAL_PATCHES, replace=False)
        defective = rng.choice(np.flatnonzero(defect > 0), n_defective, replace=False)
        order = rng.permutation(np.concatenate([normal, defective]))
        return Pictures(np.ascontiguousarray(raw["X"][order, :, :, 0]), [DEFECTS[kind] for kind in defect[order]])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--raw", type=Path, default=os.environ.get("SRR_DATA_DIR"), help="default: $SRR_DATA_DIR")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "srr_stream" / "data")
    options = parser.parse_args()
    if options.raw is None or not options.raw.is_dir():
        parser.error(f"no folder of raw data sets: {options.raw}; set SRR_DATA_DIR or give --raw")
    sets: dict[str, Table | Pictures] = {"kdd": kdd(options.raw)}
    sets |= {name: shuffled(options.raw, name) for name in ("thyroid", "arrhythmia")}
    sets["boards"] = boards(options.raw)
    manifest = {}
    for name, made in sets.items():
        content = made.to_bytes()
        (options.out / f"{name}.{made.suffix}").write_bytes(content)
        counts = Counter(made.labels)
        manifest[name] = {
            "n_records": len(made.labels),
            "n_fields": len(made.names),
            "n_anomalies": len(made.labels) - counts[NORMAL],
            "kinds": dict(sorted(counts.items())),
            "n_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    (options.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
