"""Pictures: what comes out of a good one, to the pixel, and that a bad one never costs more than itself."""

from __future__ import annotations

import builtins
import gc
import json
import struct
import subprocess
import sys
import threading
import zlib
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from consumers import images
from consumers.decoding import REASONS, ImageDecoder, JsonDecoder
from consumers.errors import LibraryMissing
from consumers.image_headers import _ADAM7, _Ihdr, _size_of_lines, looks_like, read_header
from consumers.images import ImagePool, decode_image, from_base64
from consumers.reasons import Bad
from consumers.records import Decoded, Field, FieldKind, ImageMode, ImageSpec, RecordSchema, ResizeRule, StoredRecord

SPEC = ImageSpec(32, 32)
Encode = Callable[..., bytes]


def records(values: list[bytes | None]) -> list[StoredRecord]:
    return [StoredRecord("t", 0, i, 1000 + i, None, value) for i, value in enumerate(values)]


def decode(values: list[bytes | None], spec: ImageSpec = SPEC, **options: Any) -> Decoded:
    schema = RecordSchema((Field("photo", FieldKind.IMAGE, image=spec),))
    return ImageDecoder(schema, **options).decode(records(values))


def bad_of(data: bytes, spec: ImageSpec = SPEC, **options: Any) -> Bad:
    with pytest.raises(Bad) as refused:
        decode_image(data, spec, **options)
    assert refused.value.reason in REASONS
    return refused.value


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(width: int, height: int) -> PIL.Image.Image:
    """Return a picture as cameras make them: neighbours are alike."""
    return PIL.Image.fromarray(noise(6, 5)).resize((width, height), PIL.Image.Resampling.BICUBIC)


# Good pictures


@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    mode=st.sampled_from(["grey", "rgb"]),
    kind=st.sampled_from([("PNG", {}), ("WEBP", {"lossless": True})]),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_a_lossless_file_gives_its_pixels_exactly(
    encode: Encode, width: int, height: int, mode: ImageMode, kind: tuple[str, dict[str, Any]], seed: int
) -> None:
    pixels = noise(width, height, 3, seed)
    if mode == "grey":
        pixels = np.repeat(pixels[:, :, :1], 3, axis=2)
    decoded = decode_image(encode(PIL.Image.fromarray(pixels), kind[0], **kind[1]), ImageSpec(width, height, mode))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, pixels[:, :, : decoded.shape[2]])


def test_a_grey_file_is_grey_in_every_channel_of_a_colour_field(encode: Encode) -> None:
    pixels = noise(32, 32, 1)
    decoded = decode_image(encode(PIL.Image.fromarray(pixels), "PNG"), SPEC)
    assert np.array_equal(decoded, np.repeat(pixels[:, :, None], 3, axis=2))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_a_jpeg_gives_the_pixels_that_pillow_gives(encode: Encode, options: dict[str, Any]) -> None:
    data = encode(smooth(32, 32), "JPEG", **options)
    assert np.array_equal(decode_image(data, SPEC), np.asarray(PIL.Image.open(BytesIO(data))))


@pytest.mark.parametrize("is_grey_file", [True, False])
def test_a_jpeg_turns_grey_as_a_png_does(encode: Encode, is_grey_file: bool) -> None:
    image = smooth(32, 32).convert("L") if is_grey_file else smooth(32, 32)
    data = encode(image, "JPEG", quality=95)
    expected = np.asarray(PIL.Image.open(BytesIO(data)).convert("L"), dtype=int)[:, :, None]
    assert np.abs(decode_image(data, ImageSpec(32, 32, "grey")).astype(int) - expected).max() <= 3


def test_a_cmyk_jpeg_becomes_colour_as_pillow_makes_it(encode: Encode) -> None:
    data = encode(smooth(32, 32).convert("CMYK"), "JPEG")
    assert np.array_equal(decode_image(data, SPEC), np.asarray(PIL.Image.open(BytesIO(data)).convert("RGB")))


def test_of_sixteen_bits_the_upper_eight_are_taken_in_grey_and_in_colour(encode: Encode) -> None:
    deep = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    grey = decode_image(encode(PIL.Image.fromarray(deep), "PNG"), ImageSpec(32, 32, "grey"))[:, :, 0]
    assert np.array_equal(grey, (deep >> 8).astype(np.uint8))
    lines = b"".join(b"\0" + np.repeat(line, 3).astype(">u2").tobytes() for line in deep)
    colour = decode_image(_png(32, 32, depth=16, colour=2, pixels=zlib.compress(lines)), SPEC)
    assert np.array_equal(colour, np.repeat(grey[:, :, None], 3, axis=2))


def test_a_palette_becomes_its_colours(encode: Encode) -> None:
    image = smooth(32, 32).quantize(16)
    assert np.array_equal(decode_image(encode(image, "PNG"), SPEC), np.asarray(image.convert("RGB")))


def test_one_bit_becomes_black_and_white(encode: Encode) -> None:
    bits = noise(32, 32, 1) > 127
    decoded = decode_image(encode(PIL.Image.fromarray(bits), "PNG"), ImageSpec(32, 32, "grey"))
    assert np.array_equal(decoded[:, :, 0], bits * np.uint8(255))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_is_black(encode: Encode, kind: str) -> None:
    pixels = noise(32, 32, 4)
    pixels[:16, :, 3], pixels[16:, :, 3] = 0, 255
    decoded = decode_image(encode(PIL.Image.fromarray(pixels), kind, lossless=True), SPEC)
    assert not decoded[:16].any()
    assert np.array_equal(decoded[16:], pixels[16:, :, :3])


def test_a_transparent_colour_of_a_palette_is_black(encode: Encode) -> None:
    image = PIL.Image.fromarray(np.full((32, 32), 7, dtype=np.uint8)).convert("P")
    image.putpixel((0, 0), 9)
    decoded = decode_image(encode(image, "PNG", transparency=7), SPEC)
    assert decoded.any(axis=2).sum() == 1


def test_half_transparent_is_half_as_bright(encode: Encode) -> None:
    pixels = np.full((32, 32, 4), 200, dtype=np.uint8)
    pixels[:, :, 3] = 128
    assert set(np.unique(decode_image(encode(PIL.Image.fromarray(pixels), "PNG"), SPEC))) == {100}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_upright_by_exif(encode: Encode, kind: str, orientation: int) -> None:
    from PIL import ImageOps

    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encode(smooth(24, 16), kind, exif=exif, lossless=True)
    upright = ImageOps.exif_transpose(PIL.Image.open(BytesIO(data)))
    assert upright is not None
    assert read_header(data).size == upright.size
    assert np.array_equal(decode_image(data, ImageSpec(*upright.size, resize="exact")), np.asarray(upright))
    padded = ImageSpec(31, 33, resize="pad")
    assert np.array_equal(decode_image(data, padded), decode_image(encode(upright, "PNG"), padded))


@pytest.mark.parametrize(
    "exif", [b"", b"II*\0", b"MM\0*\0\0\0\x08\0\x01", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + bytes(50)]
)
def test_exif_that_cannot_be_read_costs_nothing(encode: Encode, exif: bytes) -> None:
    image = smooth(32, 32)
    data = encode(image, "PNG", exif=b"Exif\0\0" + exif)
    assert np.array_equal(decode_image(data, SPEC), np.asarray(image))


def test_zeros_behind_the_end_are_no_trailing_data(encode: Encode) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encode(smooth(32, 32), kind)
        assert np.array_equal(decode_image(data + bytes(100), SPEC), decode_image(data, SPEC))


# Sizes


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    to=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rule=st.sampled_from(["stretch", "crop", "pad"]),
)
@settings(max_examples=80, deadline=None)
def test_every_picture_gets_the_size_of_its_field(
    encode: Encode, width: int, height: int, to: tuple[int, int], rule: ResizeRule
) -> None:
    white = PIL.Image.new("RGB", (width, height), "white")
    decoded = decode_image(encode(white, "PNG"), ImageSpec(*to, resize=rule))
    assert decoded.shape == (to[1], to[0], 3)
    if rule == "pad":
        scale = min(1.0, to[0] / width, to[1] / height)
        n_columns, n_lines = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (to[0] - n_columns) // 2, (to[1] - n_lines) // 2
        expected = np.zeros_like(decoded)
        expected[top : top + n_lines, left : left + n_columns] = 255
        assert np.array_equal(decoded, expected)
    else:
        assert (decoded == 255).all()


def test_padding_puts_a_small_picture_unchanged_into_the_middle(encode: Encode) -> None:
    pixels = noise(28, 28, 1)
    decoded = decode_image(encode(PIL.Image.fromarray(pixels), "PNG"), ImageSpec(32, 32, "grey", "pad"))
    assert np.array_equal(decoded[2:30, 2:30, 0], pixels)
    assert decoded.sum() == pixels.sum()


@pytest.mark.parametrize(
    ("width", "height", "rows", "columns"), [(40, 32, (0, 32), (4, 36)), (32, 44, (6, 38), (0, 32))]
)
def test_cropping_takes_the_middle(
    encode: Encode, width: int, height: int, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    pixels = noise(width, height)
    decoded = decode_image(encode(PIL.Image.fromarray(pixels), "PNG"), ImageSpec(32, 32, resize="crop"))
    assert np.array_equal(decoded, pixels[slice(*rows), slice(*columns)])


def test_stretching_keeps_the_whole_picture(encode: Encode) -> None:
    pixels = np.zeros((64, 256, 3), dtype=np.uint8)
    pixels[:, :8] = 255
    decoded = decode_image(encode(PIL.Image.fromarray(pixels), "PNG"), SPEC)
    assert (decoded[:, 0] > 200).all()
    assert not decoded[:, 2:].any()


def test_exact_refuses_another_size_before_it_is_decoded(encode: Encode) -> None:
    bad = bad_of(encode(smooth(33, 32), "JPEG"), ImageSpec(32, 32, resize="exact"))
    assert (bad.reason, "is 33 × 32 pixels; allowed: 32 × 32" in bad.detail) == ("wrong_size", True)


@pytest.mark.parametrize("rule", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(256, 256), (1003, 701), (128, 900)])
def test_a_large_jpeg_decoded_at_a_fraction_looks_as_if_it_had_not_been(
    encode: Encode, monkeypatch: pytest.MonkeyPatch, rule: ResizeRule, size: tuple[int, int]
) -> None:
    spec = ImageSpec(32, 32, resize=rule)
    data = encode(smooth(*size), "JPEG", quality=95)
    reduced = decode_image(data, spec).astype(int)
    assert images._draft_scale(read_header(data), spec) > 1 or (size, rule) == ((128, 900), "crop")
    monkeypatch.setattr(images, "_draft_scale", lambda header, spec: 1)
    difference = np.abs(reduced - decode_image(data, spec))
    assert difference.mean() < 1
    assert np.quantile(difference, 0.99) <= 6


def test_a_column_of_one_pixel_takes_no_more_memory_than_a_square(encode: Encode) -> None:
    decoded = decode_image(encode(PIL.Image.new("L", (1, 65_535), 255), "PNG"), ImageSpec(512, 512))
    assert (decoded == 255).all()


# Bad pictures


def test_every_hostile_file_is_bad_for_its_reason(hostile_images: dict[str, Any]) -> None:
    decoded = decode([hostile.content for hostile in hostile_images.values()])
    assert len(decoded.batch) == 0
    found = {name: bad.reason for name, bad in zip(hostile_images, decoded.bad, strict=True)}
    assert found == {name: hostile.reason for name, hostile in hostile_images.items()}
    assert all(len(bad.detail) < 300 and "\n" not in bad.detail and bad.detail.isprintable() for bad in decoded.bad)


def test_the_good_ones_among_hostile_files_lose_nothing(encode: Encode, hostile_images: dict[str, Any]) -> None:
    goods = [noise(32, 32, seed=i) for i in range(len(hostile_images))]
    values = []
    for pixels, hostile in zip(goods, hostile_images.values(), strict=True):
        values += [hostile.content, encode(PIL.Image.fromarray(pixels), "PNG")]
    decoded = decode(values)
    assert [record.offset for record in decoded.batch.raw] == list(range(1, len(values), 2))
    assert [bad.raw.offset for bad in decoded.bad] == list(range(0, len(values), 2))
    assert decoded.batch.time_ms.tolist() == list(range(1001, 1000 + len(values), 2))
    assert np.array_equal(decoded.batch.columns["photo"], np.stack(goods))


FILES = st.sampled_from([(kind, i) for kind in ("JPEG", "PNG", "WEBP") for i in range(2)])


@given(kind=FILES, edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8), st.integers(0, 9)), max_size=4))
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_is_good_or_bad_but_never_an_error(
    encode: Encode, kind: tuple[str, int], edits: list[tuple[float, bytes, int]]
) -> None:
    options: dict[str, Any] = {"progressive": True} if kind == ("JPEG", 1) else {"lossless": kind[1] == 1}
    damaged = whole = encode(smooth(20, 20), kind[0], **options)
    for place, inserted, n_dropped in edits:
        at = int(place * len(damaged))
        damaged = damaged[:at] + inserted + damaged[at + n_dropped :]
    decoded = decode([whole, damaged, whole])
    assert len(decoded.batch) + len(decoded.bad) == 3
    good = decode_image(whole, SPEC)
    assert np.array_equal(decoded.batch.columns["photo"][0], good)
    assert np.array_equal(decoded.batch.columns["photo"][-1], good)


@given(
    head=st.sampled_from(
        [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBPVP8 ", b"RIFF\x40\0\0\0WEBPVP8X"]
    ),
    rest=st.binary(max_size=100),
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_good_or_bad_but_never_an_error(head: bytes, rest: bytes) -> None:
    decoded = decode([head + rest])
    assert len(decoded.batch) + len(decoded.bad) == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_cut_anywhere_is_truncated(encode: Encode, kind: str) -> None:
    data = encode(smooth(20, 20), kind)
    start = {"JPEG": 3, "PNG": 8, "WEBP": 12}[kind]
    assert {bad_of(data[:n]).reason for n in range(start, len(data) - 1)} == {"truncated_image"}


@given(width=st.integers(1, 40), height=st.integers(1, 40), n_bits=st.sampled_from([(1, 0), (4, 3), (8, 2), (16, 6)]))
def test_the_lines_of_an_interlaced_png_are_counted_as_its_passes_have_them(
    width: int, height: int, n_bits: tuple[int, int]
) -> None:
    depth, colour = n_bits
    bits = depth * {0: 1, 3: 1, 2: 3, 6: 4}[colour]
    slowly = 0
    for left, top, step_x, step_y in _ADAM7:
        columns, lines = len(range(left, width, step_x)), len(range(top, height, step_y))
        slowly += lines * (1 + (columns * bits + 7) // 8) if columns else 0
    assert _size_of_lines(_Ihdr(width, height, depth, colour, 0, 0, 1)) == slowly


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"\xff\xd8\xff\xd9", "broken_image", "it ends without pixels"),
        (b"\xff\xd8\xff\xda\0\2\xff\xd9", "broken_image", "without a frame"),
        (b"\xff\xd8\xff\xe0\0\2junk\xff\xd9", "broken_image", "no segment begins at byte 6"),
        (b"\xff\xd8\xff\xc3\0\2\xff\xd9", "not_an_image", "lossless or hierarchical"),
        (b"\xff\xd8\xff\xc0\0\x0b\x0c\0\1\0\1\1\1\1\1\xff\xd9", "not_an_image", "1 components of 12 bits"),
        (b"\xff\xd8\xff\xc0\0\x0b\x08\0\0\0\1\1\1\1\1\xff\xd9", "broken_image", "1 × 0 pixels"),
        (b"\xff\xd8\xff\xc0\0\x05\x08\0\0\xff\xd9", "broken_image", "its frame header has 3 bytes"),
        (b"\xff\xd8" + b"\xff\xc0\0\x0b\x08\0\1\0\1\1\1\1\1" * 2, "broken_image", "a second frame begins at byte 15"),
        (b"RIFF\x1a\0\0\0WEBPVP8 " + bytes(18), "broken_image", "its first chunk is VP8"),
        (b"RIFF\x40\0\0\0WEBPVP8X\xff\0\0\0" + bytes(56), "broken_image", "reaches beyond the end"),
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(28), "not_an_image", "a RIFF file without a picture"),
        (b"\x89PNG\n" + bytes(40), "not_an_image", "a PNG with a damaged signature"),
        (b'{"photo": "..."}', "not_an_image", "record.format: json reads it"),
        ("Grüße".encode(), "not_an_image", "unknown (it begins with 4772c3bcc39f65)"),
    ],
)
def test_a_file_that_contradicts_itself_says_how(data: bytes, reason: str, words: str) -> None:
    bad = bad_of(data)
    assert (bad.reason, words in bad.detail) == (reason, True), bad.detail


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(width: int, height: int, *, depth: int = 8, colour: int = 0, pixels: bytes, chunks: bytes = b"") -> bytes:
    ihdr = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + ihdr + chunks + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 3}, "its IHDR says width 8, height 1, depth 3"),
        ({"colour": 3}, "its palette is missing"),
        ({"chunks": _chunk(b"CgBI", b"")}, "chunk CgBI at byte 33 is needed, and unknown"),
        ({"chunks": _chunk(b"IHDR", bytes(13))}, "a second chunk IHDR begins at byte 33"),
    ],
)
def test_a_png_that_contradicts_itself_says_how(options: dict[str, Any], words: str) -> None:
    bad = bad_of(_png(8, 1, pixels=zlib.compress(bytes(9)), **options))
    assert (bad.reason, words in bad.detail) == ("broken_image", True), bad.detail


def test_texts_and_profiles_of_a_png_do_not_matter_however_broken() -> None:
    texts = [
        _chunk(b"zTXt", b"a\0\0nonsense"),
        _chunk(b"iTXt", b"a\0\0\0\0\0text"),
        _chunk(b"iTXt", b"a\0\1\0\0\0oops"),
    ]
    texts += [_chunk(b"gAMA", b"\1"), _chunk(b"pHYs", b""), _chunk(b"tIME", b"late")]
    data = _png(8, 1, pixels=zlib.compress(bytes([0, *range(8)])), chunks=b"".join(texts))
    assert decode_image(data, ImageSpec(8, 1, "grey")).ravel().tolist() == list(range(8))


def test_a_limit_on_pixels_counts_what_the_header_says(encode: Encode) -> None:
    data = encode(smooth(20, 20), "PNG")
    assert bad_of(data, max_pixels=399).reason == "too_many_pixels"
    assert "allowed: 399 (record.max_pixels)" in bad_of(data, max_pixels=399).detail
    assert decode_image(data, SPEC, max_pixels=400).shape == (32, 32, 3)


def test_no_limit_goes_beyond_pillow_s_own() -> None:
    bad = bad_of(_png(65_000, 2_000, depth=1, pixels=b""), max_pixels=1 << 40)
    assert (bad.reason, "allowed: 89478485" in bad.detail) == ("too_many_pixels", True)


def test_memory_that_is_not_there_is_told_as_too_many_pixels(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> PIL.Image.Image:
        raise MemoryError

    monkeypatch.setitem(images._CODECS, "PNG", out_of_memory)
    bad = bad_of(encode(smooth(20, 20), "PNG"))
    assert (bad.reason, "no memory for 20 × 20 pixels" in bad.detail) == ("too_many_pixels", True)


def test_of_the_pictures_that_take_much_memory_one_is_decoded_at_a_time(
    encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_LARGE", 0)
    n_inside, most = 0, 0
    lock = threading.Lock()
    really = images._decode_png

    def counted(*arguments: Any) -> PIL.Image.Image:
        nonlocal n_inside, most
        with lock:
            n_inside += 1
            most = max(most, n_inside)
        image = really(*arguments)
        with lock:
            n_inside -= 1
        return image

    monkeypatch.setitem(images._CODECS, "PNG", counted)
    pictures, bad = ImagePool(SPEC, n_threads=4).decode([encode(smooth(200, 200), "PNG")] * 40)
    assert (most, bad, len(pictures)) == (1, {}, 40)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_the_number_of_threads_changes_no_pixel(encode: Encode, n_threads: int) -> None:
    files: list[bytes | None] = [encode(PIL.Image.fromarray(noise(32, 32, seed=i)), "PNG") for i in range(30)]
    files[7], files[20] = None, b"nonsense"
    pictures, bad = ImagePool(SPEC, n_threads=n_threads).decode(files)
    for row, data in enumerate(files):
        expected = decode_image(data, SPEC) if data and row != 20 else np.zeros((32, 32, 3))
        assert np.array_equal(pictures[row], expected)
    assert [(row, why.reason) for row, why in bad.items()] == [(20, "not_an_image")]


def test_more_than_one_thread_decodes(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    meeting = threading.Barrier(2, timeout=10)
    really = images._decode_png

    def noted(*arguments: Any) -> PIL.Image.Image:
        seen.add(threading.current_thread())
        meeting.wait()
        return really(*arguments)

    monkeypatch.setitem(images._CODECS, "PNG", noted)
    ImagePool(SPEC, n_threads=2).decode([encode(smooth(8, 8), "PNG")] * 2)
    assert len(seen) == 2


def test_no_picture_at_all_is_an_empty_batch() -> None:
    decoded = decode([])
    assert decoded.batch.columns["photo"].shape == (0, 32, 32, 3)
    assert decoded.batch.time_ms.shape == (0,)
    assert decoded.bad == ()


def test_a_value_that_is_empty_or_too_large_is_bad(encode: Encode) -> None:
    decoded = decode([None, b"", bytes(101)], max_record_size=100)
    assert [bad.reason for bad in decoded.bad] == ["empty", "empty", "too_large"]
    assert "a JPEG, PNG or WebP is expected" in decoded.bad[0].detail


def test_a_record_that_is_a_picture_has_room_for_nothing_else() -> None:
    photo = Field("photo", FieldKind.IMAGE, image=SPEC)
    with pytest.raises(ValueError, match="one field, of kind image; these are there: photo, x"):
        ImageDecoder(RecordSchema((photo, Field("x"))))
    with pytest.raises(ValueError, match="these are there: x"):
        ImageDecoder(RecordSchema((Field("x"),)))


def test_what_bytes_look_like_is_told_by_how_they_begin() -> None:
    assert looks_like(b"") == "empty"
    assert looks_like(b"\xef\xbb\xbf<?xml version='1.0'?><svg>") == "an SVG"
    assert looks_like(b"just words\n") == "text"


def test_a_bad_picture_is_not_kept_in_memory(hostile_images: dict[str, Any]) -> None:
    values: list[bytes | None] = [bytes(bytearray(hostile.content)) for hostile in hostile_images.values()]
    gc.collect()
    gc.disable()
    try:
        before = [sys.getrefcount(value) for value in values]
        decode(values)
        JsonDecoder(JSON_SCHEMA).decode(records(values))
        assert [sys.getrefcount(value) for value in values] == before
    finally:
        gc.enable()


# Base64 in JSON


JSON_SCHEMA = RecordSchema(
    (
        Field("photo", FieldKind.IMAGE, ("data", "photo"), image=ImageSpec(8, 8, "grey")),
        Field("camera", FieldKind.CATEGORICAL),
        Field("exposure", is_required=False),
        Field("flash", FieldKind.BOOLEAN, is_required=False),
        Field("at", FieldKind.TIMESTAMP, is_required=False),
    ),
    time_field="at",
)


def decode_json(*objects: dict[str, Any]) -> Decoded:
    return JsonDecoder(JSON_SCHEMA).decode(records([json.dumps(o).encode() for o in objects]))


def wrapped(photo: Any, **others: Any) -> dict[str, Any]:
    return {"data": {"photo": photo}, "camera": "gate-2", **others}


def test_a_picture_in_json_is_decoded_with_what_is_beside_it(encode: Encode) -> None:
    pixels = noise(8, 8, 1)
    text = b64encode(encode(PIL.Image.fromarray(pixels), "PNG")).decode()
    decoded = decode_json(wrapped(text, exposure=0.5, flash=True, at=1_700_000_000), wrapped(text))
    assert decoded.bad == ()
    assert np.array_equal(decoded.batch.features["photo"], np.stack([pixels, pixels])[..., None])
    assert list(decoded.batch.features) == ["photo"]
    assert decoded.batch.time_ms.tolist() == [1_700_000_000_000, 1001]
    assert [decoded.batch.metadata(row) for row in range(2)] == [
        {"camera": "gate-2", "exposure": 0.5, "flash": True},
        {"camera": "gate-2", "exposure": None, "flash": None},
    ]


def test_bad_records_in_json_keep_their_reasons_and_their_neighbours(encode: Encode) -> None:
    text = b64encode(encode(smooth(8, 8), "PNG")).decode()
    decoded = decode_json(
        wrapped(text),
        wrapped("no base64!"),
        wrapped(b64encode(b"GIF89a").decode()),
        wrapped(""),
        wrapped(None),
        wrapped(7),
        wrapped(text, camera=None),
        wrapped(text, exposure="long"),
        wrapped(text),
    )
    assert [record.offset for record in decoded.batch.raw] == [0, 8]
    assert decoded.batch.columns["photo"].shape == (2, 8, 8, 1)
    assert [bad.reason for bad in decoded.bad] == [
        "not_base64",
        "not_an_image",
        "not_an_image",
        "missing_field",
        "wrong_type",
        "missing_field",
        "wrong_type",
    ]
    assert decoded.bad[1].detail.startswith("field photo: the picture is a GIF")


def test_base64_may_be_a_url_or_have_line_breaks() -> None:
    data = bytes(range(256))
    text = b64encode(data).decode()
    assert from_base64(text) == data
    assert from_base64(f"data:image/png;base64,{text}") == data
    assert from_base64("\r\n".join([text[:76], text[76:]])) == data


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "allowed: the standard alphabet, padded with ="),
        ("YWJj ", "allowed: the standard alphabet"),
        ("Grüße", "is no base64"),
        (urlsafe_b64encode(bytes([255] * 9)).decode(), "write + and / for - and _"),
        ("data:image/png,abc", "is the URL 'data:image/png'"),
        ("data:image/png;base64", "is the URL"),
    ],
)
def test_what_is_no_base64_says_why(text: str, words: str) -> None:
    with pytest.raises(Bad) as refused:
        from_base64(text)
    assert (refused.value.reason, words in refused.value.detail) == ("not_base64", True), refused.value.detail


# The library


def test_without_pillow_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_pillow(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("PIL"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(LibraryMissing, match=r"pip install 'srr-stream\[images\]'"):
        decode([])
    with pytest.raises(LibraryMissing, match="Pillow"):
        JsonDecoder(JSON_SCHEMA)
    JsonDecoder(RecordSchema((Field("x"),)))


def test_records_without_pictures_do_not_load_pillow() -> None:
    code = (
        "import sys; from consumers.decoding import JsonDecoder; from consumers.records import Field, RecordSchema; "
        "from consumers.sources.files import FileSource; JsonDecoder(RecordSchema((Field('x'),))).decode([]); "
        "assert 'PIL' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


MEASURED = """
import re, sys
from pathlib import Path
from consumers.decoding import ImageDecoder
from consumers.records import Field, FieldKind, ImageSpec, RecordSchema
from consumers.sources.files import FileSource

decoder = ImageDecoder(RecordSchema((Field("photo", FieldKind.IMAGE, image=ImageSpec(64, 64)),)))
def decode(folder):
    source, n_good, n_bad = FileSource(Path(folder)), 0, 0
    while records := source.poll(0.0):
        decoded = decoder.decode(records)
        n_good, n_bad = n_good + len(decoded.batch), n_bad + len(decoded.bad)
    # The peak of this process; ru_maxrss begins with the peak of the one that started it.
    return n_good, n_bad, int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
_, _, before = decode(sys.argv[1])
print(*decode(sys.argv[2]), before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc: the peak of a process is not told")
def test_hostile_files_take_less_than_200_mib_at_their_peak(
    tmp_path: Path, encode: Encode, hostile_images: dict[str, Any]
) -> None:
    for folder in ("good", "hostile"):
        (tmp_path / folder).mkdir()
        for kind in ("JPEG", "PNG", "WEBP"):
            (tmp_path / folder / f"good.{kind}").write_bytes(encode(smooth(64, 64), kind))
    for name, hostile in hostile_images.items():
        (tmp_path / "hostile" / name).write_bytes(hostile.content)
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "good"), str(tmp_path / "hostile")]
    output = subprocess.run(command, check=True, timeout=100, capture_output=True, text=True).stdout
    n_good, n_bad, peak, before = map(int, output.split())
    assert (n_good, n_bad) == (3, len(hostile_images))
    print(f"{peak - before} MiB more at the peak")
    assert peak - before < 200
