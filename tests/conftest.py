"""What tests share: the embedded broker, a real Apache Kafka where KAFKA_HOME names one, and hostile pictures."""

from __future__ import annotations

import logging
import os
import shutil
import struct
import subprocess
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import Browser, sync_playwright

from chaos.node import Node
from srr_stream.broker import EmbeddedBroker, free_port


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[EmbeddedBroker]:
    """One embedded broker for the whole run; every test has topics of its own."""
    with EmbeddedBroker() as broker:
        yield broker


class ApacheKafka(Node):
    """A node for everybody."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.bootstrap_servers = f"127.0.0.1:{free_port()}"
        self.sasl_servers = f"127.0.0.1:{free_port()}"
        """The same broker, for who names itself: SASL_PLAINTEXT, PLAIN, user ``reader``, password ``secret``."""
        settings = {
            "listeners": f"PLAINTEXT://{self.bootstrap_servers},SASL://{self.sasl_servers}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": (
                'org.apache.kafka.common.security.plain.PlainLoginModule required user_reader="secret";'
            ),
        }
        super().__init__(home, folder, settings)


class SecureKafka(Node):
    """A node that takes named users over TLS and checks what each may do; `bootstrap_servers` is the operator's way in.

    Its certificate is for 127.0.0.1 and no other name. Users are those of `PASSWORDS`, whichever the mechanism; a
    client with a token is whom the token's ``sub`` names.
    """

    PASSWORDS: ClassVar[Mapping[str, str]] = {
        name: f"password-of-{name}" for name in ("admin", "scorer", "trainer", "auditor", "operator", "guest")
    }

    def __init__(self, home: Path, folder: Path) -> None:
        names = ("OPEN", "SECURE", "OAUTH", "EXPIRED", "MUTUAL")
        servers = {name: f"127.0.0.1:{free_port()}" for name in names}
        self.bootstrap_servers = servers["OPEN"]
        self.secure_servers = servers["SECURE"]
        """SASL_SSL: SCRAM-SHA-256, SCRAM-SHA-512, PLAIN."""
        self.oauth_servers = servers["OAUTH"]
        """SASL_SSL: OAUTHBEARER, tokens without a signature."""
        self.expired_servers = servers["EXPIRED"]
        """SSL, its certificate is of yesterday."""
        self.mutual_servers = servers["MUTUAL"]
        """SSL, and a client must have a certificate: `certificate`, its key locked by ``key-password``."""
        self.folder = folder
        self.ca, self.other_ca = folder / "ca.pem", folder / "other-ca.pem"
        self.certificate, self.key = folder / "client.pem", folder / "client-key.pem"
        self._make_certificates()
        plain = "".join(f' user_{name}="{password}"' for name, password in self.PASSWORDS.items())
        module = "org.apache.kafka.common.security"
        scram = f'{module}.scram.ScramLoginModule required username="admin" password="{self.PASSWORDS["admin"]}";'
        protocols = dict.fromkeys(names, "SSL") | {"OPEN": "PLAINTEXT", "SECURE": "SASL_SSL", "OAUTH": "SASL_SSL"}
        settings = {
            "listeners": ",".join(f"{name}://{server}" for name, server in servers.items()),
            "listener.security.protocol.map": ",".join(
                f"{name}:{protocol}" for name, protocol in ({"CONTROLLER": "PLAINTEXT"} | protocols).items()
            ),
            "inter.broker.listener.name": "SECURE",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,SCRAM-SHA-256,PLAIN",
            "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
            "listener.name.secure.scram-sha-512.sasl.jaas.config": scram,
            "listener.name.secure.scram-sha-256.sasl.jaas.config": scram,
            "listener.name.secure.plain.sasl.jaas.config": f"{module}.plain.PlainLoginModule required{plain};",
            "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
            "listener.name.oauth.oauthbearer.sasl.jaas.config": (
                f'{module}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="admin";'
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(folder / "broker.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca),
            "listener.name.expired.ssl.keystore.type": "PEM",
            "listener.name.expired.ssl.keystore.location": str(folder / "expired.pem"),
            "listener.name.mutual.ssl.client.auth": "required",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:admin;User:ANONYMOUS",
        }
        users = [
            f"--add-scram={mechanism}=[name={name},password={password}]"
            for name, password in self.PASSWORDS.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        ]
        super().__init__(home, folder, settings, *users)

    def connection(self, user: str, **changes: Any) -> dict[str, Any]:
        """Return kafka-python's settings for a user, by SCRAM unless they are changed."""
        return {
            "bootstrap_servers": [self.secure_servers],
            "security_protocol": "SASL_SSL",
            "ssl_cafile": str(self.ca),
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_plain_username": user,
            "sasl_plain_password": self.PASSWORDS.get(user),
            **changes,
        }

    def _make_certificates(self) -> None:
        """Make two CAs, and from one of them certificates for the broker, yesterday's broker, and a client."""
        for name in ("ca", "other-ca"):
            self._openssl(
                "req -x509 -days 2 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 "
                f"-subj /CN={name} -keyout {name}-key.pem -out {name}.pem"
            )
        (self.folder / "names.ext").write_text("subjectAltName=IP:127.0.0.1\n")
        for name, days in (("broker", 2), ("expired", -1), ("client", 2)):
            lock = "-passout pass:key-password" if name == "client" else "-nodes"
            self._openssl(
                f"req {lock} -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN={name} "
                f"-keyout {name}-key.pem -out {name}.csr"
            )
            self._openssl(
                f"x509 -req -days {days} -in {name}.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial "
                f"-extfile names.ext -out {name}.pem"
            )
        for name in ("broker", "expired"):  # Kafka takes one file: the key, its certificate, the CA's
            parts = [self.folder / part for part in (f"{name}-key.pem", f"{name}.pem", "ca.pem")]
            parts[1].write_text("".join(part.read_text() for part in parts))

    def _openssl(self, arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], cwd=self.folder, check=True, capture_output=True, timeout=20)


def _kafka_home() -> Path:
    home = os.environ.get("KAFKA_HOME")
    if not home:
        pytest.skip("KAFKA_HOME is not set: unpack an Apache Kafka release (Java 17) and name its folder")
    return Path(home)


@pytest.fixture(scope="session")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """One node for the whole run that lets in named users over TLS, and none without rights."""
    kafka = SecureKafka(_kafka_home(), tmp_path_factory.mktemp("secure-kafka"))
    yield kafka
    kafka.close()


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """One node of Apache Kafka for the whole run, of the release that KAFKA_HOME names."""
    kafka = ApacheKafka(_kafka_home(), tmp_path_factory.mktemp("apache-kafka"))
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("NOT RUN: needs chromium (Debian package chromium)")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Undo what commands that run in this process have set up: before a test, too, for fixtures that outlive one."""
    _log_as_pytest_does()
    yield
    _log_as_pytest_does()


def _log_as_pytest_does() -> None:
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    logging.getLogger("kafka").setLevel(logging.NOTSET)
    for handler in [handler for handler in root.handlers if type(handler).__module__ == "srr_stream.logs"]:
        root.removeHandler(handler)
