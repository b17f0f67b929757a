"""Heat maps over pictures: what is red, how red, and what stays as it is."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from srr_stream.overlays import overlay, overlay_png, scale_for


def picture(height: int = 8, width: int = 6, channels: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def spot(height: int = 8, width: int = 6, *, value: float = 3.0) -> NDArray[np.float32]:
    heat = np.full((height, width), -1.0, dtype=np.float32)
    heat[2, 4] = value
    return heat


@pytest.mark.parametrize("value", [0.0, -2.0, np.nan, np.inf, -np.inf])
def test_a_map_without_a_positive_value_leaves_a_grey_picture_as_it_is(value: float) -> None:
    grey = picture()
    shown = overlay(grey, np.full((8, 6), value, dtype=np.float32))
    assert np.array_equal(shown, np.repeat(grey, 3, axis=2))


def test_only_positive_heat_is_red() -> None:
    grey = picture()
    shown = overlay(grey, spot()).astype(int)
    is_red = (shown[:, :, 0] - shown[:, :, 1]) != 0
    assert np.argwhere(is_red).tolist() == [[2, 4]]


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e9])
def test_the_hottest_place_is_equally_red_in_every_picture(factor: float) -> None:
    assert np.array_equal(overlay(picture(), spot()), overlay(picture(), spot(value=3.0 * factor)))


def test_hotter_is_redder() -> None:
    heat = np.linspace(0.0, 1.0, 11, dtype=np.float32)[None]
    shown = overlay(np.full((1, 11, 1), 128, dtype=np.uint8), heat).astype(int)[0]
    assert (np.diff(shown[:, 0] - shown[:, 1]) > 0).all()


def test_a_picture_in_colour_is_shown_in_grey() -> None:
    colour = picture(channels=3)
    shown = overlay(colour, np.zeros((8, 6), dtype=np.float32))
    as_pillow_has_it = np.asarray(PIL.Image.fromarray(colour).convert("L"))
    assert (shown[:, :, 0] == shown[:, :, 2]).all()
    assert np.abs(shown[:, :, 0].astype(int) - as_pillow_has_it).max() <= 1


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the heat map is \(8, 5\), the picture \(8, 6\)"):
        overlay(picture(), np.zeros((8, 5), dtype=np.float32))


def test_neither_picture_nor_map_is_changed() -> None:
    grey, heat = picture(), spot()
    before = grey.copy(), heat.copy()
    overlay_png(grey, heat)
    assert np.array_equal(grey, before[0])
    assert np.array_equal(heat, before[1])


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(32, 32, 4), (64, 64, 4), (128, 40, 4), (200, 129, 2), (224, 224, 2), (600, 8, 1)]
)
def test_small_pictures_are_enlarged_by_whole_pixels(height: int, width: int, scale: int) -> None:
    assert scale_for(height, width) == scale
    grey, heat = picture(height, width), np.zeros((height, width), dtype=np.float32)
    shown = np.asarray(PIL.Image.open(io.BytesIO(overlay_png(grey, heat))))
    assert shown.shape == (height * scale, width * scale, 3)
    assert np.array_equal(shown[::scale, ::scale, 0], grey[:, :, 0])
    assert np.array_equal(shown[scale - 1 :: scale, scale - 1 :: scale, 0], grey[:, :, 0])
