"""The shipped data sets are what their README says, and can be made again."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import lzma
import os
import subprocess
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from consumers.decoding import DECODERS, ImageDecoder
from consumers.records import Field, FieldKind, ImageSpec, RecordSchema, StoredRecord
from srr_stream.data import DATASETS, PICTURE_DATASETS, Dataset, load

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "srr_stream" / "data"
MAKER = ROOT / "benchmarks" / "make_datasets.py"
MANIFEST: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text())
RAW = os.environ.get("SRR_DATA_DIR")
FILE_OF = {name: f"{name}.{'pictures.xz' if name in PICTURE_DATASETS else 'columns.gz'}" for name in DATASETS}


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_datasets", MAKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_datasets"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", DATASETS)
def test_a_shipped_file_is_the_one_of_the_manifest_and_the_readme(name: str) -> None:
    content = (FOLDER / FILE_OF[name]).read_bytes()
    figures = MANIFEST[name]
    assert hashlib.sha256(content).hexdigest() == figures["sha256"]
    assert len(content) == figures["n_bytes"] <= 1_000_000
    row = (
        f"| {name} | {figures['n_records']:,} | {figures['n_fields']} | {figures['n_anomalies']:,} "
        f"| {figures['n_bytes']:,} | `{figures['sha256']}` |"
    )
    assert row in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("name", DATASETS)
def test_every_record_of_a_shipped_set_is_one_that_its_schema_allows(name: str) -> None:
    dataset = load(name)
    raw = [StoredRecord("t", 0, i, 0, None, value) for i, value in enumerate(dataset.values())]
    decoded = DECODERS[dataset.format](dataset.schema).decode(raw)
    assert not decoded.bad
    assert len(decoded.batch) == len(dataset) == MANIFEST[name]["n_records"]
    assert len(dataset.schema.fields) == MANIFEST[name]["n_fields"]


@pytest.mark.parametrize("name", DATASETS)
def test_labels_and_kinds_say_the_same(name: str) -> None:
    dataset = load(name)
    assert dataset.kinds is not None
    assert dataset.is_anomaly is not None
    assert dict(sorted(Counter(dataset.kinds).items())) == MANIFEST[name]["kinds"]
    assert dataset.is_anomaly.tolist() == [kind != "normal" for kind in dataset.kinds]
    assert dataset.is_anomaly.sum() == MANIFEST[name]["n_anomalies"]


def test_kdd_has_the_fields_that_the_readme_promises() -> None:
    schema = load("kdd").schema
    assert schema.categorical_names == (
        "protocol_type",
        "service",
        "flag",
        "land",
        "logged_in",
        "is_host_login",
        "is_guest_login",
    )
    assert sum(field.kind is FieldKind.NUMERIC for field in schema.fields) == 34


def test_attacks_in_kdd_are_three_percent_in_many_bursts_of_many_kinds() -> None:
    kinds = load("kdd").kinds
    assert kinds is not None
    bursts = [(kind, len(list(run))) for kind, run in groupby(kinds) if kind != "normal"]
    assert sum(n for _, n in bursts) / len(kinds) == pytest.approx(0.03, abs=0.0005)
    assert len(bursts) == 87
    assert len({kind for kind, _ in bursts}) == 19
    assert max(n for _, n in bursts) == 94


@pytest.mark.parametrize("name", ["thyroid", "arrhythmia", "boards"])
def test_anomalies_of_a_shuffled_set_are_spread_over_the_stream(name: str) -> None:
    is_anomaly = load(name).is_anomaly
    assert is_anomaly is not None
    quarters = [part.mean() / is_anomaly.mean() for part in np.array_split(is_anomaly, 4)]
    assert min(quarters) > 0.6
    assert max(quarters) < 1.6


def test_values_can_be_read_twice_and_begin_anew_each_time() -> None:
    dataset = load("thyroid")
    assert list(dataset.values()) == list(dataset.values())


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="'kddcup' is not shipped; allowed: kdd, thyroid, arrhythmia, boards"):
        load("kddcup")


def test_records_of_ones_own_make_a_set_without_labels() -> None:
    schema = RecordSchema((Field("x"),))
    dataset = Dataset.from_values("mine", schema, [b'{"x": 1}', b'{"x": 2}'])
    assert (len(dataset), dataset.is_anomaly, dataset.kinds) == (2, None, None)
    assert list(dataset.values()) == [b'{"x": 1}', b'{"x": 2}']


def test_boards_are_grey_patches_five_percent_of_them_with_one_of_six_defects() -> None:
    boards = load("boards")
    assert (boards.format, boards.has_pictures) == ("image", True)
    (field,) = boards.schema.fields
    assert field.image == ImageSpec(64, 64, "grey", "exact")
    assert boards.is_anomaly is not None
    assert boards.is_anomaly.mean() == pytest.approx(0.05, abs=0.0005)
    assert len(set(boards.kinds or ())) == 7


def test_the_pngs_of_boards_are_the_pixels_that_ship() -> None:
    boards = load("boards")
    content = io.BytesIO(lzma.decompress((FOLDER / "boards.pictures.xz").read_bytes()))
    pixels = np.load(content, allow_pickle=False)
    raw = [StoredRecord("t", 0, i, 0, None, value) for i, value in zip(range(300), boards.values(), strict=False)]
    decoded = ImageDecoder(boards.schema).decode(raw).batch.columns["picture"]
    assert np.array_equal(decoded[..., 0], pixels[:300])


def test_the_licence_of_what_is_not_under_that_of_the_others_is_beside_it() -> None:
    text = (FOLDER / "README.md").read_text()
    assert "Permission is hereby granted, free of charge" in text
    assert "DeepPCB" in text


def test_thinning_cuts_long_runs_and_keeps_every_run_in_its_place(maker: ModuleType) -> None:
    labels = [*"nnsssspnnnsss"]  # n: normal, s and p: attacks
    labels = ["normal" if label == "n" else label for label in labels]
    rows = [(str(i), label) for i, label in enumerate(labels)]
    # 5 normal rows at one half allow 5 attacks: 2 + 1 + 2 with runs of at most 2; 3 + 1 + 3 would be too many.
    assert [int(i) for i, _ in maker.thinned(rows, 0.5)] == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]


def test_too_few_normal_rows_are_an_error(maker: ModuleType) -> None:
    with pytest.raises(ValueError, match="1 normal rows; 2 are needed"):
        maker.up_to_normal([("0", "normal"), ("1", "smurf")], 2)


@pytest.mark.parametrize(("text", "short"), [("0.50", "0.5"), ("1.00", "1"), ("100", "100"), ("0.00", "0")])
def test_numbers_lose_only_zeros_that_say_nothing(maker: ModuleType, text: str, short: str) -> None:
    assert maker.shortest(text) == short


def test_the_maker_says_what_it_needs_when_there_are_no_raw_sets() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "SRR_DATA_DIR"}
    done = subprocess.run([sys.executable, MAKER], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "set SRR_DATA_DIR or give --raw" in done.stderr


@pytest.mark.skipif(RAW is None, reason="NOT RUN: needs the raw data sets in SRR_DATA_DIR")
def test_the_shipped_sets_can_be_made_again_from_the_raw_ones(tmp_path: Path) -> None:
    subprocess.run([sys.executable, MAKER, "--out", tmp_path], check=True, capture_output=True, timeout=100)
    for name, file in FILE_OF.items():
        unpack = lzma.decompress if name in PICTURE_DATASETS else gzip.decompress
        made, shipped = (unpack((at / file).read_bytes()) for at in (tmp_path, FOLDER))
        assert made == shipped, name


def test_the_same_table_gives_the_same_bytes_whenever_it_is_written(
    maker: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = maker.Table(["x"], ["numeric"], [["1", "2"]], ["normal", "anomaly"])
    before = table.to_bytes()
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert table.to_bytes() == before
    assert gzip.decompress(before) == b"x,numeric,1,2\nlabel,label,normal,anomaly\n"
    pictures = maker.Pictures(np.zeros((2, 3, 4), dtype=np.uint8), ["normal", "spur"])
    before = pictures.to_bytes()
    monkeypatch.setattr("time.time", lambda: 5e9)
    assert pictures.to_bytes() == before
