"""Make the data sets that srr-stream ships from the raw ones: ``SRR_DATA_DIR=… python benchmarks/make_datasets.py``.

A set is one gzip'd text with a line per field: name, kind, then every record's value as a JSON literal, separated by
commas; the last line holds the labels. Values of a field lie side by side, which compresses better than rows. The same
raw files give the same bytes with every run (gzip without a time; two builds of zlib may differ).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

SEED = 0
N_NORMAL = 60_000
MAX_ATTACK_RATIO = 0.03
NORMAL, ANOMALY = "normal", "anomaly"
KDD_TEXTS = ("protocol_type", "service", "flag")
KDD_CATEGORICAL = (*KDD_TEXTS, "land", "logged_in", "is_host_login", "is_guest_login")


@dataclass(frozen=True)
class Table:
    """A data set in columns of JSON literals, with the label of every record."""

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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--raw", type=Path, default=os.environ.get("SRR_DATA_DIR"), help="default: $SRR_DATA_DIR")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "srr_stream" / "data")
    options = parser.parse_args()
    if options.raw is None or not options.raw.is_dir():
        parser.error(f"no folder of raw data sets: {options.raw}; set SRR_DATA_DIR or give --raw")
    tables = {"kdd": kdd(options.raw)} | {name: shuffled(options.raw, name) for name in ("thyroid", "arrhythmia")}
    manifest = {}
    for name, table in tables.items():
        content = table.to_bytes()
        (options.out / f"{name}.columns.gz").write_bytes(content)
        counts = Counter(table.labels)
        manifest[name] = {
            "n_records": len(table.labels),
            "n_fields": len(table.names),
            "n_anomalies": len(table.labels) - counts[NORMAL],
            "kinds": dict(sorted(counts.items())),
            "n_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    (options.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
