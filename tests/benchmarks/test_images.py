"""Pictures in the benchmarks: who trains on what, and that a run is measured once and told with the paper's figures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import images, paper, picture_scoring
from benchmarks.datasets import DatasetMissing
from benchmarks.picture_sets import CLASSES, _cifar_file, _fashion_file, load_split
from benchmarks.published_pictures import CLASSES as PUBLISHED
from benchmarks.published_pictures import published


def _encoded(picture: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


@pytest.fixture(autouse=True)
def _no_set_of_another_folder() -> None:
    _fashion_file.cache_clear()
    _cifar_file.cache_clear()


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a small made-up copy of every set; a picture's first pixel is its number."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 400), ("test", 200)):
        X = rng.integers(0, 256, size=(n, 28, 28), dtype=np.uint8)
        X[:, 0, 0] = np.arange(n) % 256
        label = (np.arange(n) % 10).astype(np.uint8)
        np.savez(tmp_path / f"fashion_mnist_{part}.npz", X=X, label=label)
        files = [_encoded(np.full((32, 32, 3), i % 256, dtype=np.uint8), "JPEG") for i in range(n)]
        offset = np.cumsum([0, *map(len, files)])
        blob = np.frombuffer(b"".join(files), dtype=np.uint8)
        np.savez(tmp_path / f"cifar10_{part}_jpeg.npz", blob=blob, offset=offset, label=label)
    source = np.repeat(np.arange(60, dtype=np.int32), 10)
    boards = rng.integers(0, 256, size=(600, 64, 64, 1), dtype=np.uint8)
    boards[:, 0, 0, 0] = source
    np.savez(tmp_path / "deeppcb_patches.npz", X=boards, y=np.arange(600) % 4 == 0, source_image=source)
    for folder, n in (("train/good", 20), ("test/good", 5), ("test/crack", 6), ("test/scratch", 4)):
        (tmp_path / "mvtec" / "bottle" / folder).mkdir(parents=True)
        for i in range(n):
            (tmp_path / "mvtec" / "bottle" / folder / f"{i}.png").write_bytes(
                _encoded(rng.integers(0, 256, size=(70, 70, 3), dtype=np.uint8), "PNG")
            )
    for kind in ("Dog", "Cat"):
        (tmp_path / "dog-vs-cat" / kind).mkdir(parents=True)
        for i in range(30):
            picture = rng.integers(0, 256, size=(40, 50, 3), dtype=np.uint8)
            (tmp_path / "dog-vs-cat" / kind / f"{i}.jpg").write_bytes(_encoded(picture, "JPEG"))
    monkeypatch.setenv("SRR_DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("sets")
@pytest.mark.parametrize(
    ("dataset", "class_name", "n_train", "shape"),
    [
        ("fashion-mnist", "sneaker", 40, (32, 32, 1)),
        ("cifar10", "dog", 40, (32, 32, 3)),
        ("mvtec", "bottle", 20, (48, 48, 3)),
        ("dog-vs-cat", "dog", 15, (48, 48, 3)),
    ],
)
def test_a_share_of_the_training_pictures_is_swapped_for_other_classes(
    dataset: str, class_name: str, n_train: int, shape: tuple[int, ...]
) -> None:
    clean, dirty = (load_split(dataset, class_name, ratio, 0, side=48) for ratio in (0.0, 0.1))
    assert (len(clean.train), clean.train_is_anomaly.sum()) == (n_train, 0)
    assert (len(dirty.train), dirty.train_is_anomaly.sum()) == (n_train, round(0.1 * n_train))
    assert clean.train.shape[1:] == dirty.test.shape[1:] == shape
    assert 0 < dirty.test_is_anomaly.sum() < len(dirty.test)


@pytest.mark.usefixtures("sets")
def test_fashion_is_padded_to_32_pixels_and_normal_is_the_class() -> None:
    split = load_split("fashion-mnist", "sneaker", 0.25, 3)
    assert not split.train[:, :2].any()
    assert not split.train[:, :, -2:].any()
    numbers = split.train[:, 2, 2, 0]
    sneakers = {number % 256 for number in range(400) if number % 10 == 7}
    assert set(numbers[~split.train_is_anomaly].tolist()) <= sneakers
    assert load_split("fashion-mnist", "sneaker", 0.25, 4).train[:, 2, 2, 0].tolist() != numbers.tolist()


@pytest.mark.usefixtures("sets")
def test_no_board_is_on_both_sides() -> None:
    split = load_split("boards", "boards", 0.1, 0, n_train=100)
    assert not set(split.train[:, 0, 0, 0].tolist()) & set(split.test[:, 0, 0, 0].tolist())
    assert split.train_is_anomaly.sum() == 10


@pytest.mark.usefixtures("sets")
def test_defects_of_mvtec_that_train_do_not_test() -> None:
    split = load_split("mvtec", "bottle", 0.2, 0, side=16)
    trained = {picture.tobytes() for picture in split.train}
    assert split.train_is_anomaly.sum() == 4
    assert split.test_is_anomaly.sum() == 6
    assert not any(picture.tobytes() in trained for picture in split.test)


@pytest.mark.usefixtures("sets")
def test_more_anomalies_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs 12 anomalies; mvtec bottle has 10"):
        load_split("mvtec", "bottle", 0.6, 0, side=16)


def test_a_set_that_is_not_here_is_named_with_its_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SRR_DATA_DIR", str(tmp_path))
    for name in CLASSES:
        with pytest.raises(DatasetMissing, match=r"source: https://"):
            load_split(name, CLASSES[name][0], 0.0, 0)


@pytest.mark.usefixtures("sets")
def test_a_run_is_measured_once_and_has_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["images", "figure9", "--quick", "--sets", "boards", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert paper.main(arguments) == 0
    assert capsys.readouterr().err.count("auc") == 2
    assert paper.main(arguments) == 0
    assert "auc" not in capsys.readouterr().err
    written = json.loads((tmp_path / "out" / "paper-images-figure9-small-boards-quick.json").read_text())
    assert [record["method"] for record in written["records"]] == ["base", "srr"]
    refined = written["records"][1]
    assert 0.0 <= refined["of_normal_rows"] <= 1.0
    assert (refined["n_train"], refined["n_train_anomalies"], refined["device"]) == (200, 20, "the processor")
    titles = [table["title"] for table in written["tables"]]
    assert titles == [
        "AUC and AP in percent, mean ± deviation over the seeds",
        "Gain by refinement on the same splits, in points",
        "Excluded from training, in percent",
        "Sizes and cost",
    ]


@pytest.mark.usefixtures("sets")
def test_no_training_begins_after_the_minutes_are_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter([0.0] + [61.0] * 100)
    monkeypatch.setattr(images.time, "monotonic", lambda: next(ticks))
    arguments = ["figure9", "--quick", "--sets", "boards", "--max-minutes", "1", "--out", str(tmp_path)]
    assert images.main(arguments) == 1
    assert "call again to go on" in capsys.readouterr().err


def test_what_is_unknown_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["images", "figure3"], "invalid choice: 'figure3'"),
        (["images", "figure5", "--sets", "imagenet"], "set 'imagenet' is unknown"),
        (["images", "figure5", "--classes", "lion"], "class 'lion' is unknown"),
    ):
        with pytest.raises(SystemExit):
            paper.main(arguments)
        assert message in capsys.readouterr().err


def test_gamma_is_twice_the_ratio_and_a_variant_changes_what_it_says() -> None:
    config = images.config_of("small", "boards", 0.1, "srr")
    assert (config.gamma, config.refine, config.calibration_ratio) == (0.2, "both", 0.02)
    assert images.config_of("small", "boards", 0.0, "srr").gamma == 0.005
    assert images.config_of("small", "boards", 0.1, "srr", {"gamma_factor": 3.0}).gamma == pytest.approx(0.3)
    assert images.config_of("small", "boards", 0.1, "srr", {"n_epochs": 2}).representation_options["n_epochs"] == 2
    assert images.config_of("paper", "cifar10", 0.1, "base").representation_options["n_epochs"] == 2048
    assert images.config_of("small", "boards", 0.06, "otsu").gamma == "otsu"


def test_every_published_class_is_one_of_the_sets() -> None:
    for name, classes in PUBLISHED.items():
        assert set(classes) <= set(CLASSES[name])
    assert published("cifar10", "cat", 0.0, "base", "ap") == "44.0"
    assert published("cifar10", "cat", 0.05, "base", "ap") == "-"
    means = {at: np.mean([row[at] for row in PUBLISHED["cifar10"].values()]) for at in range(8)}
    assert [round(float(means[at]), 1) for at in (0, 1, 2, 3)] == [92.1, 91.9, 83.6, 89.9]


def test_ways_to_score_give_the_same_features() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, size=(8, 32, 32, 1), dtype=np.uint8)
    rows = picture_scoring.compared(picture_scoring.made(4, 1, 1, with_compile=False), pictures, 1)
    differences = {name: float(difference) for name, _, _, difference in rows}
    assert differences[picture_scoring.ONNX] < 1e-4
    assert differences[picture_scoring.EAGER] == 0.0
