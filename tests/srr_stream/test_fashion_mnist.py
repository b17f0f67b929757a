"""Fashion-MNIST: found, fetched once, checked; and what is said where it cannot be had. Never from the network."""

from __future__ import annotations

import gzip
import hashlib
import struct
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from consumers.decoding import ImageDecoder
from consumers.errors import SourceError
from consumers.records import StoredRecord
from srr_stream import cli
from srr_stream.data import Dataset
from srr_stream.data.fashion_mnist import CHECKSUMS, CLASSES, IMAGES, LABELS, RAW, load_fashion_mnist

N = 300


def pictures() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pictures whose every pixel is their class, and the classes."""
    label = (np.arange(N) % 10).astype(np.uint8)
    return np.broadcast_to(label[:, None, None], (N, 28, 28)).copy(), label


def idx(values: NDArray[np.uint8]) -> bytes:
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return gzip.compress(head + values.tobytes(), mtime=0)


class Site:
    """A folder of the set's files, and who serves it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        pixels, label = pictures()
        (folder / IMAGES).write_bytes(idx(pixels))
        (folder / LABELS).write_bytes(idx(label))
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                site.asked.append(self.path)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def checksums(self) -> dict[str, str]:
        return {name: hashlib.md5((self.folder / name).read_bytes()).hexdigest() for name in (IMAGES, LABELS)}

    def load(self, normal: str = "sneaker", **options: Any) -> Dataset:
        checksums = options.pop("checksums", None) or self.checksums()
        return load_fashion_mnist(normal, url=self.url, checksums=checksums, **options)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no raw files."""
    monkeypatch.delenv("SRR_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "srr-stream" / "fashion-mnist"


@pytest.fixture
def site(tmp_path: Path, cache: Path) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    made = Site(folder)
    yield made
    made.close()


def columns(dataset: Dataset) -> NDArray[np.uint8]:
    raw = [StoredRecord("t", 0, i, 0, None, value) for i, value in enumerate(dataset.values())]
    decoded = ImageDecoder(dataset.schema).decode(raw)
    assert not decoded.bad
    made: NDArray[np.uint8] = decoded.batch.columns["picture"]
    return made


def test_one_class_is_normal_and_five_percent_are_of_the_others(site: Site) -> None:
    dataset = site.load("bag")
    assert dataset.kinds is not None
    assert dataset.is_anomaly is not None
    assert dataset.kinds.count("normal") == 30
    assert dataset.is_anomaly.sum() == 2  # 5 % of 32
    assert dataset.is_anomaly.tolist() == [kind != "normal" for kind in dataset.kinds]
    shown = columns(dataset)
    assert shown.shape == (32, 32, 32, 1)
    assert (shown[:, :2] == 0).all()  # 28 in the middle of 32
    assert [CLASSES[i] for i in shown[:, 16, 16, 0]] == ["bag" if kind == "normal" else kind for kind in dataset.kinds]


def test_the_files_are_fetched_once_and_then_read_from_the_cache(site: Site, cache: Path) -> None:
    fetched: list[str] = []
    first = site.load(on_fetch=fetched.append)
    assert fetched == [site.url + IMAGES, site.url + LABELS]
    site.close()
    second = site.load(on_fetch=fetched.append)
    assert len(fetched) == 2
    assert list(first.values()) == list(second.values())
    assert sorted(path.name for path in cache.iterdir()) == [IMAGES, LABELS]


def test_a_file_of_the_cache_that_is_torn_is_fetched_anew(site: Site, cache: Path) -> None:
    site.load()
    (cache / LABELS).write_bytes(b"torn")
    assert len(site.load()) == 32
    assert site.asked == [f"/{IMAGES}", f"/{LABELS}", f"/{LABELS}"]


def test_a_file_with_another_checksum_is_refused_and_not_kept(site: Site, cache: Path) -> None:
    with pytest.raises(SourceError, match=f"{IMAGES}: is not the file it should be .*set SRR_DATA_DIR"):
        site.load(checksums=CHECKSUMS)
    assert not cache.exists()


def test_where_nobody_answers_the_error_says_what_to_do(site: Site, cache: Path) -> None:
    site.close()
    with pytest.raises(SourceError, match=r"cannot be fetched: .*github\.com/zalandoresearch/fashion-mnist") as failed:
        site.load()
    assert str(cache) in str(failed.value)
    assert RAW in str(failed.value)


def test_a_page_that_is_missing_is_named(site: Site) -> None:
    checksums = site.checksums()
    (site.folder / LABELS).unlink()
    with pytest.raises(SourceError, match=f"{LABELS}: cannot be fetched: HTTP Error 404"):
        site.load(checksums=checksums)


def test_a_cache_that_cannot_be_written_is_named(site: Site, cache: Path) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder should be")
    with pytest.raises(SourceError, match=r"cannot be written: .*; set XDG_CACHE_HOME"):
        site.load()


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"\0\0\x0d\3" + bytes(12), mtime=0),  # floats
        idx(np.zeros((N, 28), dtype=np.uint8)),  # no pictures
        idx(np.zeros((7, 28, 28), dtype=np.uint8)),  # fewer than labels
        gzip.compress(b"\0\0\x08\3" + struct.pack(">3I", N, 28, 28) + bytes(5), mtime=0),  # breaks off
        idx(pictures()[0])[:-9],
        b"",
    ],
)
def test_files_that_are_no_such_set_are_refused_whatever_their_checksum(site: Site, content: bytes) -> None:
    (site.folder / IMAGES).write_bytes(content)
    with pytest.raises(SourceError, match=r"is no Fashion-MNIST: .*fetched anew"):
        site.load()


def test_raw_files_at_hand_are_read_and_nothing_is_fetched(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, label = pictures()
    np.savez(tmp_path / RAW, X=pixels, label=label)
    monkeypatch.setenv("SRR_DATA_DIR", str(tmp_path))
    assert list(site.load().values()) == list(load_fashion_mnist(url="http://127.0.0.1:9/").values())
    assert site.asked == []


def test_a_raw_file_that_is_something_else_is_named(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRR_DATA_DIR", str(tmp_path))
    for content in (b"", b"PK\3\4torn"):
        (tmp_path / RAW).write_bytes(content)
        with pytest.raises(SourceError, match=f"{RAW}: is no Fashion-MNIST"):
            site.load()
    np.savez(tmp_path / RAW, pixels=pictures()[0])
    with pytest.raises(SourceError, match=f"{RAW}: is no Fashion-MNIST"):
        site.load()


def test_a_folder_of_raw_files_without_this_one_is_passed_over(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRR_DATA_DIR", str(tmp_path))
    assert len(site.load()) == 32
    assert site.asked


def test_an_unknown_class_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="class 'sock' is not one of Fashion-MNIST; allowed: t-shirt, trouser"):
        load_fashion_mnist("sock")


def test_the_command_line_offers_the_classes_of_the_set() -> None:
    assert tuple(cli._FASHION) == CLASSES
