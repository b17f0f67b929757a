"""The data sets by name, from ``$SRR_DATA_DIR`` or, where it suffices, from what ships with the project.

Scaling and splitting are left to `benchmarks.protocols`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.protocols import kdd_rev_rows

ADBENCH = (
    "annthyroid",
    "breastw",
    "campaign",
    "cardio",
    "cardiotocography",
    "fault",
    "glass",
    "hepatitis",
    "ionosphere",
    "letter",
    "magic_gamma",
    "mammography",
    "musk",
    "pima",
    "shuttle",
    "spambase",
    "vowels",
    "wbc",
    "wine",
    "yeast",
)
PAPER = ("kdd", "kddrev", "thyroid", "arrhythmia")
TABULAR = (*PAPER, *ADBENCH)
STREAMS = (
    "smd_machine_1_6",
    "smd_machine_2_1",
    "smd_machine_2_2",
    "asd_server_1",
    "asd_server_2",
    "asd_server_3",
    "asd_server_4",
)
SHIPPED = ("thyroid", "arrhythmia")
"""Complete in the package; the shipped kdd is a cut of the recording and not the paper's set."""
SOURCES = {
    "adbench": "https://github.com/Minqi824/ADBench (adbench/datasets/Classical)",
    "kdd": "https://kdd.ics.uci.edu/databases/kddcup99/kddcup99.html (kddcup.data_10_percent)",
    "thyroid": "https://odds.cs.stonybrook.edu/thyroid-disease-dataset/",
    "arrhythmia": "https://odds.cs.stonybrook.edu/arrhythmia-dataset/",
    "smd": "https://github.com/NetManAIOps/OmniAnomaly (ServerMachineDataset)",
    "asd": "https://github.com/zhhlee/InterFusion (data)",
}


class DatasetMissing(Exception):
    """A data set is not on this machine; the message says where it is to be had."""


@dataclass(frozen=True)
class Table:
    """Rows with labels that are for measuring only.

    `X` is ``(n, d)`` float32, `is_anomaly` ``(n,)``, `source` is ``shipped`` or ``SRR_DATA_DIR``.
    """

    name: str
    X: NDArray[np.float32]
    is_anomaly: NDArray[np.bool_]
    source: str


@dataclass(frozen=True)
class Stream:
    """Rows in the order of time: the first `n_warm_up` without labels, the rest to be scored."""

    name: str
    X: NDArray[np.float32]
    is_anomaly: NDArray[np.bool_]
    n_warm_up: int


def load_table(name: str, seed: int = 0) -> Table:
    """Return the table `name`; `seed` decides only which attacks are in ``kddrev``.

    Raises
    ------
    DatasetMissing
        If the file is not here; says where the data are to be had.
    """
    if name == "kddrev":
        kdd = _table("kdd", _folder())
        # In KDD the rare normal connections are the anomalies; here it is the other way round.
        is_attack = ~kdd.is_anomaly
        rows = kdd_rev_rows(is_attack, seed)
        return Table(name, kdd.X[rows], is_attack[rows], kdd.source)
    return _table(name, _folder())


def load_stream(name: str) -> Stream:
    """Return the stream `name`.

    Raises
    ------
    DatasetMissing
        If the file is not here; says where the data are to be had.
    """
    with np.load(_path(f"{name[:3]}/{name}.npz", name[:3]), allow_pickle=False) as arrays:
        split = arrays["split"]
        n_warm_up = int(np.sum(split == 0))
        return Stream(name, arrays["X"], arrays["y"].astype(bool), n_warm_up)


@lru_cache(maxsize=2)
def _table(name: str, folder_of_data: str) -> Table:
    """Return the table; what is read from one folder does not stand for what is in another."""
    if name in SHIPPED and not folder_of_data:
        return _shipped(name)
    folder, file, origin = "", f"{name}.npz", name
    if name == "kdd":
        file = "kddcup99_10percent_onehot.npz"
    elif name in ADBENCH:
        folder, origin = "adbench/", "adbench"
    with np.load(_path(folder + file, origin), allow_pickle=False) as arrays:
        return Table(name, arrays["X"], arrays["y"].astype(bool), "SRR_DATA_DIR")


def _shipped(name: str) -> Table:
    from srr_stream.data import load

    dataset = load(name)
    assert dataset.is_anomaly is not None
    names = [field.name for field in dataset.schema.fields]
    records: list[dict[str, Any]] = [json.loads(value) for value in dataset.values()]
    X = np.array([[record[field] for field in names] for record in records], dtype=np.float32)
    return Table(name, X, dataset.is_anomaly, "shipped")


def _folder() -> str:
    return os.environ.get("SRR_DATA_DIR", "")


def _path(file: str, origin: str) -> Path:
    folder = _folder()
    if not folder:
        raise DatasetMissing(
            f"{file} does not ship with the project: set SRR_DATA_DIR to a folder with it; source: {SOURCES[origin]}"
        )
    path = Path(folder) / file
    if not path.is_file():
        raise DatasetMissing(f"{file} is not in SRR_DATA_DIR ({folder}); source: {SOURCES[origin]}")
    return path
