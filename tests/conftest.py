"""What tests share: the embedded broker, a real Apache Kafka where KAFKA_HOME names one, and hostile pictures."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pytest

from srr_stream.broker import EmbeddedBroker, create_topics, die_with_parent, free_port

_START_S = 60.0


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[EmbeddedBroker]:
    """One embedded broker for the whole run; every test has topics of its own."""
    with EmbeddedBroker() as broker:
        yield broker


class ApacheKafka:
    """One node of Apache Kafka (KRaft) with its data in `folder`: it can be killed, and started again."""

    def __init__(self, home: Path, folder: Path) -> None:
        self._home = home
        self._log_path = folder / "server.log"
        self._config = folder / "server.properties"
        controller = free_port()
        self.bootstrap_servers = f"127.0.0.1:{free_port()}"
        self.sasl_servers = f"127.0.0.1:{free_port()}"
        """The same broker, for who names itself: SASL_PLAINTEXT, PLAIN, user ``reader``, password ``secret``."""
        listeners = f"PLAINTEXT://{self.bootstrap_servers},SASL://{self.sasl_servers}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": listeners,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": (
                'org.apache.kafka.common.security.plain.PlainLoginModule required user_reader="secret";'
            ),
            "log.dirs": str(folder / "data"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            # After a hard kill the node may register again at once instead of waiting out its old session.
            "broker.session.timeout.ms": "2000",
            "broker.heartbeat.interval.ms": "500",
        }
        self._config.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        cluster_id = self._storage("random-uuid").stdout.split()[-1]
        self._storage("format", "-t", cluster_id, "-c", str(self._config))
        self.start()

    def start(self) -> None:
        """Start the node and wait until it answers."""
        with self._log_path.open("ab") as server_log:
            self._process = subprocess.Popen(
                [self._home / "bin" / "kafka-server-start.sh", self._config],
                stdin=subprocess.DEVNULL,
                stdout=server_log,
                stderr=server_log,
                start_new_session=True,  # the script and its Java are ended together
                preexec_fn=die_with_parent,
            )
        self._wait()

    def create_topics(self, topics: Mapping[str, int]) -> None:
        """Make topics, name → number of partitions."""
        create_topics(self.bootstrap_servers, topics)

    def kill(self) -> None:
        """Kill it the hard way; its data stays."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Stop it; twice is fine."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, how)
        self._process.wait(30)

    def _storage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self._home / "bin" / "kafka-storage.sh"), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)

    def _wait(self) -> None:
        from kafka.admin import KafkaAdminClient
        from kafka.errors import KafkaError

        until = time.monotonic() + _START_S
        while time.monotonic() < until and self._process.poll() is None:
            try:
                KafkaAdminClient(bootstrap_servers=self.bootstrap_servers, bootstrap_timeout_ms=2000).close()
                return
            except KafkaError:
                time.sleep(0.1)  # nothing announces that a server in another process is up
        self.close()
        pytest.fail(f"Apache Kafka did not start: {self._log_path.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """One node of Apache Kafka for the whole run, of the release that KAFKA_HOME names."""
    home = os.environ.get("KAFKA_HOME")
    if not home:
        pytest.skip("KAFKA_HOME is not set: unpack an Apache Kafka release (Java 17) and name its folder")
    kafka = ApacheKafka(Path(home), tmp_path_factory.mktemp("apache-kafka"))
    yield kafka
    kafka.close()


@pytest.fixture
def topic_name() -> str:
    """A name that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


def encode(image: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    """Return the file of a picture."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, *, depth: int = 8, colour: int = 0, pixels: bytes = b"", chunks: bytes = b"") -> bytes:
    """Return a PNG made by hand: `pixels` are the packed lines, `chunks` stand before them."""
    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + ihdr + chunks + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def zeros(n: int) -> bytes:
    """Return `n` zeros, packed."""
    packing = zlib.compressobj(9)
    parts = [packing.compress(bytes(min(1 << 20, n - start))) for start in range(0, n, 1 << 20)]
    return b"".join(parts) + packing.flush()


class Hostile(NamedTuple):
    """A file that must become a dead letter."""

    content: bytes
    reason: str


def make_hostile_images() -> dict[str, Hostile]:
    """Return file name → file: bombs, truncations, polyglots, animations, and what is no picture at all."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
    photo = PIL.Image.fromarray(pixels).resize((320, 240))
    frames = [PIL.Image.fromarray(np.roll(pixels, i, axis=0)) for i in range(3)]
    moving = {"save_all": True, "append_images": frames[1:], "duration": 40}
    jpeg, lossless, webp = encode(photo, "JPEG"), encode(photo, "PNG"), encode(photo, "WEBP")
    line = zlib.compress(bytes(9))
    text = chunk(b"zTXt", b"Comment\0\0" + zeros(300_000))
    sof, huffman = jpeg.index(b"\xff\xc0"), jpeg.index(b"\xff\xc4")
    progressive = encode(photo, "JPEG", progressive=True)
    first_scan = progressive.index(b"\xff\xda")
    second_scan = progressive.index(b"\xff\xda", first_scan + 2)
    archive = b"PK\x03\x04" + bytes(26) + b"evil.class" + bytes(40)
    laughs = '<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><svg>&b;</svg>'
    return {
        "pixels.png": Hostile(png(30_000, 30_000, depth=1, pixels=zeros(30_000 * 3751)), "too_many_pixels"),
        "frame.jpg": Hostile(jpeg[: sof + 5] + b"\xff\xdc\xff\xdc" + jpeg[sof + 9 :], "too_many_pixels"),
        "canvas.webp": Hostile(
            b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0" + struct.pack("<BI", 0x2F, 0x0FFFFFFF) + bytes(9), "too_many_pixels"
        ),
        "column.png": Hostile(png(1, 16_000_000, pixels=zeros(32_000_000)), "too_many_pixels"),
        "text.png": Hostile(png(8, 1, pixels=line, chunks=chunk(b"zTXt", b"a\0\0" + zeros(200 << 20))), "too_large"),
        "texts.png": Hostile(png(8, 1, pixels=line, chunks=text * 200), "too_large"),
        "profile.png": Hostile(png(8, 1, pixels=line, chunks=chunk(b"iCCP", b"a\0\0" + zeros(99 << 20))), "too_large"),
        "scans.jpg": Hostile(
            progressive[:second_scan] + progressive[first_scan:second_scan] * 99 + b"\xff\xd9", "broken_image"
        ),
        "moving.png": Hostile(encode(frames[0], "PNG", **moving), "animated"),
        "moving.webp": Hostile(encode(frames[0], "WEBP", **moving), "animated"),
        "moving-gif.png": Hostile(encode(frames[0], "GIF", **moving), "not_an_image"),
        "two.jpg": Hostile(jpeg + encode(frames[0], "JPEG"), "animated"),
        "half.jpg": Hostile(jpeg[: len(jpeg) // 2], "truncated_image"),
        "head.jpg": Hostile(jpeg[: sof + 4], "truncated_image"),
        "start.jpg": Hostile(jpeg[:3], "truncated_image"),
        "half.png": Hostile(lossless[: len(lossless) // 2], "truncated_image"),
        "endless.png": Hostile(lossless[:-12], "truncated_image"),
        "cut.png": Hostile(png(640, 480, pixels=zlib.compress(bytes(641 * 100))), "truncated_image"),
        "half.webp": Hostile(webp[: len(webp) // 2], "truncated_image"),
        "archive-behind.jpg": Hostile(jpeg + archive, "trailing_data"),
        "page-behind.png": Hostile(lossless + b"<html><script>alert(1)</script></html>", "trailing_data"),
        "archive-behind.webp": Hostile(webp + archive, "trailing_data"),
        "archive-before.jpg": Hostile(archive + jpeg, "not_an_image"),
        "bytes-before.png": Hostile(b"\1\2\3" + lossless, "not_an_image"),
        "gifar.jpg": Hostile(encode(frames[0], "GIF") + archive, "not_an_image"),
        "svg.jpg": Hostile(laughs.encode(), "not_an_image"),
        "page.jpg": Hostile(b"<!DOCTYPE html><html></html>", "not_an_image"),
        "pdf.png": Hostile(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "not_an_image"),
        "elf.png": Hostile(b"\x7fELF\2\1\1" + bytes(64), "not_an_image"),
        "tiff.jpg": Hostile(encode(photo, "TIFF"), "not_an_image"),
        "bmp.jpg": Hostile(encode(photo, "BMP"), "not_an_image"),
        "ico.png": Hostile(encode(photo.resize((32, 32)), "ICO"), "not_an_image"),
        "heic.jpg": Hostile(b"\0\0\0\x18ftypheic" + bytes(64), "not_an_image"),
        "empty.png": Hostile(b"", "empty"),
        "huffman.jpg": Hostile(jpeg[: huffman + 5] + b"\xff" * 16 + jpeg[huffman + 21 :], "broken_image"),
        "checksum.png": Hostile(lossless[:60] + bytes([lossless[60] ^ 1]) + lossless[61:], "broken_image"),
        "nothing.png": Hostile(png(0, 7, pixels=line), "broken_image"),
        "noise.png": Hostile(png(64, 64, pixels=rng.bytes(400)), "broken_image"),
    }


@pytest.fixture(scope="session")
def hostile_images() -> dict[str, Hostile]:
    """File name → a file that must become a dead letter, and its reason."""
    return make_hostile_images()


@pytest.fixture(name="encode", scope="session")
def _encode() -> Callable[..., bytes]:
    return encode
