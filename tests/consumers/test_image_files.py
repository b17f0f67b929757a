"""Files of pictures: every kind gives the files as they would be in Kafka; size and mode are seen from them."""

from __future__ import annotations

import base64
import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import polars as pl
import pytest
from numpy.typing import NDArray

from consumers.decoding import DECODERS
from consumers.errors import SourceError
from consumers.records import Field, FieldKind, ImageSpec, StoredRecord
from consumers.sources import files
from consumers.sources.files import FileSource, infer_schema, record_format
from consumers.sources.image_files import MAX_FILE_SIZE

Encode = Callable[..., bytes]
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)


def read(path: Path, **options: Any) -> list[StoredRecord]:
    source, records = FileSource(path, **options), []
    while polled := source.poll(0.0):
        records += polled
    return records


def decoded(path: Path) -> NDArray[np.uint8]:
    """Return the pictures of a file, read and decoded as it is said to be."""
    schema = infer_schema(path)
    batch = DECODERS[record_format(path)](schema).decode(read(path))
    assert not batch.bad
    (name,) = schema.feature_names
    return batch.batch.columns[name]


@pytest.fixture
def pngs(encode: Encode) -> list[bytes]:
    return [encode(PIL.Image.fromarray(pixels), "PNG") for pixels in PIXELS]


def write_folder(folder: Path, pngs: list[bytes]) -> None:
    folder.mkdir()
    for i, data in enumerate(pngs):
        (folder / f"{i}.png").write_bytes(data)


def write_pixels(path: Path, pngs: list[bytes]) -> None:
    np.savez(path, X=PIXELS, label=np.zeros(5))


def write_named_pixels(path: Path, pngs: list[bytes]) -> None:
    np.savez_compressed(path, images=PIXELS)


def write_packed(path: Path, pngs: list[bytes]) -> None:
    offset = np.cumsum([0, *map(len, pngs)])
    np.savez(path, blob=np.frombuffer(b"".join(pngs), dtype=np.uint8), offset=offset)


def write_parquet(path: Path, pngs: list[bytes]) -> None:
    pl.DataFrame({"bytes": pngs}).write_parquet(path)


def write_parquet_with_metadata(path: Path, pngs: list[bytes]) -> None:
    pl.DataFrame({"id": range(5), "photo": pngs, "camera": ["a"] * 5}).write_parquet(path)


def write_ndjson(path: Path, pngs: list[bytes]) -> None:
    lines = [json.dumps({"photo": base64.b64encode(data).decode(), "n": i}) for i, data in enumerate(pngs)]
    path.write_text("\n".join(lines))


WRITERS = {
    "folder": write_folder,
    "pixels.npz": write_pixels,
    "named.npz": write_named_pixels,
    "packed.npz": write_packed,
    "photos.parquet": write_parquet,
    "metadata.parquet": write_parquet_with_metadata,
    "photos.ndjson": write_ndjson,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_pictures(tmp_path: Path, pngs: list[bytes], name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, pngs)
    assert np.array_equal(decoded(path), PIXELS)
    records = read(path, max_batch=2)
    assert [record.offset for record in records] == list(range(5))
    assert {record.topic for record in records} == {name}


@pytest.mark.parametrize("name", WRITERS)
def test_how_records_are_written_is_seen_from_the_file(tmp_path: Path, pngs: list[bytes], name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, pngs)
    assert record_format(path) == ("json" if name in ("metadata.parquet", "photos.ndjson") else "image")


@pytest.mark.parametrize("name", ["folder", "packed.npz", "photos.parquet"])
def test_files_are_passed_on_untouched(tmp_path: Path, pngs: list[bytes], name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, pngs)
    assert [record.value for record in read(path)] == pngs


def test_reading_goes_on_where_a_former_source_committed(tmp_path: Path, pngs: list[bytes]) -> None:
    for name, write in WRITERS.items():
        path = tmp_path / name
        write(path, pngs)
        assert [record.offset for record in read(path, committed={(name, 0): 3})] == [3, 4]


def test_other_columns_become_metadata(tmp_path: Path, pngs: list[bytes]) -> None:
    path = tmp_path / "metadata.parquet"
    write_parquet_with_metadata(path, pngs)
    schema = infer_schema(path)
    assert schema.fields == (
        Field("id"),
        Field("photo", FieldKind.IMAGE, image=ImageSpec(8, 6)),
        Field("camera", FieldKind.CATEGORICAL),
    )
    batch = DECODERS["json"](schema).decode(read(path)).batch
    assert batch.metadata(3) == {"id": 3.0, "camera": "a"}


def test_of_two_fields_with_pictures_the_first_is_the_picture(
    tmp_path: Path, pngs: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "two.parquet"
    pl.DataFrame({"front": pngs, "back": pngs}).write_parquet(path)
    with caplog.at_level(logging.INFO):
        assert infer_schema(path).feature_names == ("front",)
    assert "field back is left out: another field is the picture" in caplog.text


# Folders


def test_a_folder_is_read_in_the_order_of_its_paths_with_these_as_keys(tmp_path: Path, pngs: list[bytes]) -> None:
    for name in ("b.png", "a/z.png", "a/b/c.jpg", "a.png", "Ümlaut.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pngs[0])
    os.utime(tmp_path / "a.png", (1000, 1000))
    records = read(tmp_path)
    keys = [record.key.decode() for record in records if record.key is not None]
    assert keys == ["a.png", "a/b/c.jpg", "a/z.png", "b.png", "Ümlaut.png"]
    assert records[0].timestamp == 1_000_000


def test_what_is_no_file_of_the_folder_is_left_out_and_logged(
    tmp_path: Path, pngs: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    folder, outside = tmp_path / "photos", tmp_path / "outside"
    write_folder(folder, pngs[:1])
    write_folder(outside, pngs[1:])
    (folder / ".hidden.png").write_bytes(pngs[0])
    (folder / ".git").mkdir()
    (folder / ".git" / "x.png").write_bytes(pngs[0])
    (folder / "inside.png").symlink_to(folder / "0.png")
    (folder / "outside.png").symlink_to(outside / "1.png")
    (folder / "nowhere.png").symlink_to(folder / "absent.png")
    (folder / "elsewhere").symlink_to(outside)
    os.mkfifo(folder / "pipe.png")
    with caplog.at_level(logging.INFO):
        assert [record.key for record in read(folder)] == [b"0.png", b"inside.png"]
    for name, why in {
        ".hidden.png": "it is hidden",
        ".git": "it is hidden",
        "outside.png": "it is a link that leads out of the folder",
        "nowhere.png": "it is no regular file",
        "elsewhere": "it is a link to a folder",
        "pipe.png": "it is no regular file",
    }.items():
        assert f"{name} is left out: {why}" in caplog.text


def test_a_file_that_is_gone_meanwhile_is_an_empty_record(
    tmp_path: Path, pngs: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path / "photos", pngs)
    source = FileSource(tmp_path / "photos", max_batch=1)
    source.poll(0.0)
    (tmp_path / "photos" / "1.png").unlink()
    assert source.poll(0.0)[0].value is None
    assert "1.png: cannot be read: No such file or directory; its record is empty" in caplog.text
    assert source.poll(0.0)[0].value == pngs[2]


def test_a_poll_ends_when_it_has_read_enough(
    tmp_path: Path, pngs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "photos", pngs)
    monkeypatch.setattr(files, "_POLL_BYTES", len(pngs[0]) + 1)
    source = FileSource(tmp_path / "photos")
    assert [len(source.poll(0.0)) for _ in range(4)] == [2, 2, 1, 0]


def test_of_an_endless_file_no_more_is_read_than_shows_that_it_is_too_large(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(10 << 30)
    (record,) = read(tmp_path)
    assert len(record.value or b"") == MAX_FILE_SIZE + 1


@pytest.mark.parametrize("names", [[], [".hidden.png"]])
def test_a_folder_without_files_says_so(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match="there is no file in this folder; expected: JPEG, PNG or WebP files"):
        FileSource(tmp_path).poll(0.0)


# What the pictures have in common


@pytest.mark.parametrize("colour", [True, False])
def test_the_mode_is_colour_if_one_of_the_first_is(tmp_path: Path, encode: Encode, colour: bool) -> None:
    for i in range(4):
        is_colour = colour and i == 3
        image = PIL.Image.fromarray(PIXELS[0]) if is_colour else PIL.Image.fromarray(PIXELS[0, :, :, 0])
        (tmp_path / f"{i}.jpg").write_bytes(encode(image.convert("RGB"), "JPEG"))
    (field,) = infer_schema(tmp_path).fields
    assert field.image == ImageSpec(8, 6, "rgb" if colour else "grey")


def test_the_size_is_that_of_the_first_picture_that_can_be_read(tmp_path: Path, pngs: list[bytes]) -> None:
    (tmp_path / "0.txt").write_bytes(b"no picture")
    (tmp_path / "1.png").write_bytes(pngs[0][:-20])
    (tmp_path / "2.png").write_bytes(pngs[0])
    assert infer_schema(tmp_path).fields == (Field("image", FieldKind.IMAGE, image=ImageSpec(8, 6)),)


def test_large_pictures_are_made_smaller(tmp_path: Path, encode: Encode, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "photo.jpg").write_bytes(encode(PIL.Image.new("RGB", (1000, 500), "red"), "JPEG"))
    with caplog.at_level(logging.INFO):
        (field,) = infer_schema(tmp_path).fields
    assert field.image == ImageSpec(256, 128)
    assert "the pictures are 1000 × 500 pixels; taken is 256 as the longer side" in caplog.text


@pytest.mark.parametrize("name", ["a.png", "b.parquet", "c.ndjson"])
def test_without_one_readable_picture_there_is_no_schema(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    broken = b"\x89PNG\r\n\x1a\n broken"
    if path.suffix == ".parquet":
        pl.DataFrame({"photo": [broken, None]}).write_parquet(path)
    elif path.suffix == ".ndjson":
        path.write_text(json.dumps({"photo": base64.b64encode(broken).decode() + "!"}))
    else:
        path.write_bytes(broken)
        path = tmp_path
    with pytest.raises(SourceError, match="none of its first pictures can be read"):
        infer_schema(path)


# npz


def test_grey_pixels_may_have_a_channel_or_none(tmp_path: Path) -> None:
    grey = PIXELS[..., 0]
    for i, pixels in enumerate((grey, grey[..., None])):
        np.savez(tmp_path / f"{i}.npz", X=pixels)
        assert np.array_equal(decoded(tmp_path / f"{i}.npz"), grey[..., None])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": PIXELS.astype(float)}, r"X is float64 \(5, 6, 8, 3\); allowed: uint8 \(n, height, width\)"),
        ({"X": PIXELS[:, :, :, :2]}, r"X is uint8 \(5, 6, 8, 2\); allowed"),
        ({"images": PIXELS[0, 0]}, r"images is uint8 \(8, 3\); allowed"),
        ({"y": PIXELS}, "has no pictures, but y; allowed: X or images, or blob with offset"),
        ({}, "has no pictures, but nothing"),
        ({"blob": PIXELS, "offset": np.arange(3)}, r"blob is uint8 \(5, 6, 8, 3\)"),
        ({"blob": PIXELS.ravel(), "offset": np.array([0, 9, 5])}, "that rise from 0 to the end of blob"),
        ({"blob": PIXELS.ravel(), "offset": np.array([0, 1 << 40])}, "that rise from 0 to the end of blob"),
        ({"blob": PIXELS.ravel(), "offset": np.array([-5, 9])}, "that rise from 0 to the end of blob"),
        ({"blob": PIXELS.ravel(), "offset": np.array([0.0, 9.0])}, r"offset float64 \(2,\)"),
        ({"X": np.array([{}, []], dtype=object)}, "is no readable .npz file: Object arrays cannot be loaded"),
    ],
)
def test_an_npz_without_pictures_says_what_it_has(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(SourceError, match=message) as raised:
        FileSource(path).poll(0.0)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_npz_says_so(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with path.open("wb") as file:
        np.save(file, PIXELS)
    for content in (b"", b"nonsense", b"PK\x03\x04nonsense", path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(SourceError, match=r"is no \.npz file; write one with numpy\.savez"):
            FileSource(path).poll(0.0)


def test_a_damaged_npz_says_so(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", b"nonsense")
    with pytest.raises(SourceError, match=r"X is \|S8 \(\); allowed: uint8"):
        FileSource(path).poll(0.0)
    np.savez_compressed(path, X=PIXELS)
    content = bytearray(path.read_bytes())
    content[150:200] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"is no readable \.npz file"):
        FileSource(path).poll(0.0)
