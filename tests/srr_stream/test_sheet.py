"""The contact sheet: what is on it, and that the pictures are those that were flagged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from consumers.decoding import ImageDecoder
from consumers.records import ImageSpec
from models.detector import Model
from models.training import TrainingConfig, train
from srr_stream.data import Dataset
from srr_stream.demo.sheet import Tile, choose, draw_sheet, make_tiles
from srr_stream.demo.summary import Verdict


def verdict(n: int, severity: float, *, version: int = 1) -> Verdict:
    return Verdict(f"demo.events-0-{n}", severity, severity >= 1, version, 0.0)


def tile(n: int, severity: float, *, kind: str | None = "spur", side: int = 64) -> Tile:
    rng = np.random.default_rng(n)
    picture = rng.integers(0, 256, (side, side, 1), dtype=np.uint8)
    return Tile(verdict(n, severity), picture, rng.normal(size=(side, side)).astype(np.float32), kind)


def drawn(path: Path, tiles: list[Tile]) -> NDArray[np.uint8]:
    draw_sheet(path, tiles, title="boards: 3 of 100 pictures flagged")
    assert path.read_bytes().startswith(b"\x89PNG")
    return np.asarray(PIL.Image.open(path))


def test_the_most_severe_of_the_flagged_are_chosen() -> None:
    chosen = choose([verdict(n, 1.0 + n / 100) for n in range(100)], most=48)
    assert [each.severity for each in chosen] == [1.0 + n / 100 for n in range(99, 51, -1)]


def test_where_few_are_flagged_the_next_ones_by_severity_fill_the_sheet() -> None:
    chosen = choose([verdict(0, 0.3), verdict(1, 1.2), verdict(2, 0.9), verdict(3, 0.1)], most=3, least=3)
    assert [each.severity for each in chosen] == [1.2, 0.9, 0.3]


def test_of_a_doubled_record_the_first_verdict_counts() -> None:
    assert choose([verdict(0, 1.5), verdict(0, 3.0)]) == [verdict(0, 1.5)]


def test_heat_maps_are_computed_by_the_version_that_gave_the_verdict() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (120, 16, 16), dtype=np.uint8)
    dataset = Dataset.from_pictures("some", pixels, ImageSpec(16, 16, "grey"), ["normal"] * 119 + ["spur"])
    config = TrainingConfig(representation="pixels", classifier="gde")
    models: dict[int, Model] = {
        version: train({"picture": pixels[part, :, :, None]}, config, seed=version).model
        for version, part in ((1, slice(0, 60)), (2, slice(60, 120)))
    }
    values = list(dataset.values())
    verdicts = [verdict(119, 2.0, version=2), verdict(3, 1.5, version=1), verdict(7, 1.2, version=2)]
    asked: list[int] = []

    def load(version: int) -> Model:
        asked.append(version)
        return models[version]

    kinds = {"demo.events-0-119": "spur"}
    tiles = make_tiles(
        verdicts, {f"demo.events-0-{n}": values[n] for n in (3, 7, 119)}, kinds, ImageDecoder(dataset.schema), load
    )
    assert sorted(asked) == [1, 2]
    assert [each.verdict for each in tiles] == verdicts
    assert [each.kind for each in tiles] == ["spur", None, None]
    for made, n in zip(tiles, (119, 3, 7), strict=True):
        assert np.array_equal(made.picture[:, :, 0], pixels[n])
        (expected,) = models[made.verdict.version].heat_maps({"picture": pixels[[n], :, :, None]})
        assert np.array_equal(made.heat, expected)


def test_every_picture_is_on_the_sheet_with_its_pixels(tmp_path: Path) -> None:
    tiles = [tile(n, 2.0 - n / 10) for n in range(9)]
    sheet = drawn(tmp_path / "sheet.png", tiles)
    grey = sheet[:, :, 0].astype(int)
    for each in tiles:
        line = each.picture[30, :, 0].repeat(2)  # shown at twice its size
        rows = [row for row in grey if line.tobytes() in row.astype(np.uint8).tobytes()]
        assert len(rows) >= 2


def test_a_sheet_grows_by_rows_and_not_in_width(tmp_path: Path) -> None:
    few = drawn(tmp_path / "few.png", [tile(n, 2.0) for n in range(6)])
    many = drawn(tmp_path / "many.png", [tile(n, 2.0) for n in range(48)])
    assert few.shape[1] == many.shape[1]
    assert many.shape[0] > 5 * (few.shape[0] - 150)
    assert 20_000 < (tmp_path / "many.png").stat().st_size < 3_000_000


@pytest.mark.parametrize("side", [8, 32, 100, 200])
def test_pictures_of_any_size_make_a_sheet(tmp_path: Path, side: int) -> None:
    assert drawn(tmp_path / "sheet.png", [tile(n, 1.0, side=side) for n in range(7)]).shape[1] < 3000


def test_a_sheet_of_nothing_says_so_by_being_empty(tmp_path: Path) -> None:
    assert drawn(tmp_path / "sheet.png", []).shape[0] < 200


def test_what_is_not_flagged_and_what_is_a_false_alarm_is_marked(tmp_path: Path) -> None:
    red, blue, faint = (0xB8, 0x00, 0x2A), (0x1F, 0x5F, 0xA8), (0x9A, 0x9A, 0x9A)
    plain = np.zeros((64, 64, 1), dtype=np.uint8)
    heat = np.zeros((64, 64), dtype=np.float32)

    def only(severity: float, kind: str | None) -> set[tuple[int, ...]]:
        sheet = drawn(tmp_path / "sheet.png", [Tile(verdict(0, severity), plain, heat, kind)])
        without_text = sheet[120:240]
        return {tuple(pixel) for pixel in without_text.reshape(-1, 3).tolist()} & {red, blue, faint}

    assert only(1.5, "spur") == only(1.5, None) == {red}
    assert only(1.5, "normal") == {blue}
    assert only(0.5, "spur") == only(0.5, None) == {faint}


def test_a_sheet_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        draw_sheet(tmp_path / "nowhere" / "sheet.png", [tile(0, 1.0)], title="")
