"""What the file of a picture says of itself, and whether it is whole; no pixel is decoded.

A file is walked from its first byte to its last: the segments of a JPEG, the chunks of a PNG or a WebP. So its size is
known before memory is taken for it, and so is what a codec would never tell: a second picture, or another file, behind
the first. Decoding is :mod:`consumers.images`'s.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from consumers.reasons import Bad

MAX_SIDE = 65_535
"""Pixels: the longest side that a JPEG can have. A PNG may claim more, and Pillow keeps a pointer for every line."""

_MAX_SCANS = 64
"""A progressive JPEG has about ten. Each scan goes through all pixels, and takes a few bytes."""
_MAX_TEXT = 1 << 20
"""Bytes to which the texts and the colour profile of a PNG may unpack, all together."""

_PNG = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""The next marker behind the coded pixels of a JPEG: in them 0xff is followed by 0, or by the number of a restart."""
_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
"""Baseline, extended and progressive, Huffman and arithmetic coding."""
_OTHER_FRAMES = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF})
"""Lossless and hierarchical."""
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Colour type → bits of a sample."""
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Colour type → samples of a pixel."""
_WHOLE = ((0, 0, 1, 1),)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Passes of an interlaced PNG: first column and line, steps to the next."""

_SIGNATURES = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x7fELF", "an ELF program"),
    (b"MZ", "a Windows program"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\0\0\1\0", "an ICO"),
    (b"8BPS", "a PSD"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"RIFF", "a RIFF file without a picture"),
    (b"\xff\xd8\xff", "a JPEG"),
    (_PNG, "a PNG"),
    (b"\x89PNG", "a PNG with a damaged signature"),
)
_TEXT_SIGNATURES = (
    (b"<svg", "an SVG"),
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<script", "HTML"),
    (b"<", "XML"),
    (b"{", "JSON (record.format: json reads it)"),
    (b"#!", "a script"),
)


class Header(NamedTuple):
    """What is known of a picture before it is decoded."""

    format: str
    """JPEG, PNG or WebP."""
    width: int
    height: int
    """As stored, in pixels; `orientation` may turn them."""
    orientation: int
    """EXIF's, 1 to 8; 1 is upright, and from 5 on width and height change places."""
    content: bytes
    """What a codec needs: the file, of a PNG only the chunks that make the pixels."""
    n_components: int = 0
    """Of a JPEG: 1 grey, 3 colour, 4 CMYK."""
    is_progressive: bool = False
    """Of a JPEG: all of its coefficients are in memory at once."""
    packed: bytes = b""
    """Of a PNG: its pixels, packed by zlib."""
    n_unpacked: int = 0
    """Of a PNG: how many bytes these must unpack to."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as the picture is seen."""
        return (self.width, self.height) if self.orientation < 5 else (self.height, self.width)


def read_header(data: bytes) -> Header:
    """Walk through the file of a picture.

    Raises
    ------
    Bad
        ``not_an_image``: of no format that is read, with what it looks like; ``truncated_image``: it ends too early;
        ``broken_image``: it contradicts itself, or its format; ``trailing_data``: something is behind its end, zeros
        aside; ``animated``: it holds more than one picture; ``too_large``: its texts unpack to more than 1 MiB.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _read_jpeg(data)
    if data.startswith(_PNG):
        return _read_png(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _read_webp(data)
    raise Bad("not_an_image", f"the picture is {looks_like(data)}; allowed: JPEG, PNG, WebP, from the first byte on")


def looks_like(data: bytes) -> str:
    """Name what bytes are by how they begin.

    Examples
    --------
    >>> looks_like(b"GIF89a..."), looks_like(b" <svg>"), looks_like(bytes([1, 2, 3]))
    ('a GIF', 'an SVG', 'unknown (it begins with 010203)')
    """
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return "a HEIC, AVIF or MP4 file"
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for signature, name in _TEXT_SIGNATURES:
        if start.startswith(signature):
            return "an SVG" if b"<svg" in start else name
    if start and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        return "text"
    found = [(at, name) for magic, name in ((b"\xff\xd8\xff", "JPEG"), (_PNG, "PNG")) if (at := data.find(magic)) > 0]
    inside = "; a {1} begins at byte {0}".format(*min(found)) if found else ""
    return f"unknown (it begins with {data[:8].hex()}{inside})"


def _read_jpeg(data: bytes) -> Header:
    """Walk through segments and scans.

    Stricter than libjpeg, which skips what lies between two segments: what is accepted here it reads in the same way,
    so that it never finds another size than the one that memory was taken for.
    """
    frame: tuple[int, int, int, bool] | None = None
    orientation, n_scans, at = 1, 0, 2
    while True:
        if data[at : at + 1] == b"\xff":
            while data[at + 1 : at + 2] == b"\xff":  # fill bytes
                at += 1
        if len(data) < at + 2:
            _truncated("JPEG", len(data))
        marker = data[at + 1]
        if data[at] != 0xFF or marker <= 0x01 or 0xD0 <= marker <= _SOI:
            _broken("JPEG", f"no segment begins at byte {at}")
        if marker == _EOI:
            break
        if len(data) < at + 4:
            _truncated("JPEG", len(data))
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if end > len(data):
            _truncated("JPEG", len(data))
        if marker in _FRAMES:
            if frame is not None:
                _broken("JPEG", f"a second frame begins at byte {at}")
            frame = _read_frame(data[at + 4 : end], is_progressive=marker in (0xC2, 0xCA))
        elif marker in _OTHER_FRAMES:
            raise Bad("not_an_image", "the picture is a lossless or hierarchical JPEG; allowed: baseline, progressive")
        elif marker == _APP1 and data.startswith(b"Exif\0\0", at + 4):
            orientation = _orientation(data[at + 10 : end])
        elif marker == _SOS:
            n_scans += 1
            if frame is None:
                _broken("JPEG", f"pixels begin at byte {at} without a frame")
            if n_scans > _MAX_SCANS:
                _broken("JPEG", f"it has more than {_MAX_SCANS} scans")
            following = _MARKER.search(data, end)
            if following is None:
                _truncated("JPEG", len(data))
            end = following.start()
        at = end
    if frame is None or n_scans == 0:
        _broken("JPEG", "it ends without pixels")
    _check_end(data, at + 2, "JPEG")
    width, height, n_components, is_progressive = frame
    return Header("JPEG", width, height, orientation, data, n_components, is_progressive)


def _read_frame(segment: bytes, *, is_progressive: bool) -> tuple[int, int, int, bool]:
    if len(segment) < 6 or len(segment) != 6 + 3 * segment[5]:
        _broken("JPEG", f"its frame header has {len(segment)} bytes")
    bits, height, width, n_components = struct.unpack_from(">BHHB", segment)
    if bits != 8 or n_components not in (1, 3, 4):
        raise Bad(
            "not_an_image",
            f"the picture is a JPEG of {n_components} components of {bits} bits; allowed: 1, 3 or 4 of 8 bits",
        )
    if not width or not height:
        _broken("JPEG", f"it is {width} × {height} pixels")
    return width, height, n_components, is_progressive


def _read_png(data: bytes) -> Header:
    ihdr = _read_ihdr(data)
    orientation, text_left = 1, _MAX_TEXT
    kept, pixels = [_PNG], []
    seen: set[bytes] = set()
    end = len(_PNG)
    for name, start, end in _png_chunks(data):
        content = data[start + 8 : end - 4]
        if name in (b"IHDR", b"PLTE", b"tRNS") and name in seen:
            _broken("PNG", f"a second chunk {_shown(name)} begins at byte {start}")
        if name == b"acTL":
            raise Bad("animated", "the PNG is animated (chunk acTL); allowed: one picture a record")
        if name == b"IDAT":
            pixels.append(content)
        if name == b"eXIf":
            orientation = _orientation(content)
        elif name in (b"zTXt", b"iTXt", b"iCCP"):
            text_left -= _unpacked_size(name, content, text_left)
        elif name in (b"IHDR", b"PLTE", b"IDAT", b"IEND") or (name == b"tRNS" and ihdr.depth < 16):
            kept.append(data[start:end])  # of 16 bits 8 are kept, among them no colour is told from its neighbours
        elif not name[0] & 0x20:
            _broken("PNG", f"chunk {_shown(name)} at byte {start} is needed, and unknown")
        seen.add(name)
    if not pixels or (ihdr.colour == 3 and b"PLTE" not in seen):
        _broken("PNG", "its palette is missing" if pixels else "it has no pixels")
    _check_end(data, end, "PNG")
    packed = pixels[0] if len(pixels) == 1 else b"".join(pixels)
    return Header(
        "PNG", ihdr.width, ihdr.height, orientation, b"".join(kept), packed=packed, n_unpacked=_size_of_lines(ihdr)
    )


class _Ihdr(NamedTuple):
    width: int
    height: int
    depth: int
    colour: int
    packing: int
    filtering: int
    interlace: int


def _read_ihdr(data: bytes) -> _Ihdr:
    if len(data) < 33:
        _truncated("PNG", len(data))
    length, name, *rest = struct.unpack_from(">I4sIIBBBBB", data, len(_PNG))
    if name != b"IHDR" or length != 13:
        _broken("PNG", "its first chunk is no IHDR of 13 bytes")
    ihdr = _Ihdr(*rest)
    if ihdr.depth not in _PNG_DEPTHS.get(ihdr.colour, ()) or ihdr.packing or ihdr.filtering or ihdr.interlace > 1:
        _broken("PNG", f"its IHDR says {', '.join(f'{key} {value}' for key, value in ihdr._asdict().items())}")
    if not ihdr.width or not ihdr.height:
        _broken("PNG", f"it is {ihdr.width} × {ihdr.height} pixels")
    return ihdr


def _size_of_lines(ihdr: _Ihdr) -> int:
    """Return the bytes of all lines, each with its filter in front."""
    n_bits = ihdr.depth * _PNG_SAMPLES[ihdr.colour]
    size = 0
    for left, top, step_x, step_y in _ADAM7 if ihdr.interlace else _WHOLE:
        n_columns, n_lines = -(-(ihdr.width - left) // step_x), -(-(ihdr.height - top) // step_y)
        if n_columns > 0:
            size += max(0, n_lines) * (1 + -(-n_columns * n_bits // 8))
    return size


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of every chunk up to IEND, each with its checksum right."""
    view = memoryview(data)
    at, name = len(_PNG), b""
    while name != b"IEND":
        if len(data) < at + 12:
            _truncated("PNG", len(data))
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if not name.isalpha():
            _broken("PNG", f"no chunk begins at byte {at}")
        if end > len(data):
            _truncated("PNG", len(data))
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            _broken("PNG", f"the checksum of chunk {_shown(name)} at byte {at} is wrong")
        yield name, at, end
        at = end


def _unpacked_size(name: bytes, content: bytes, left: int) -> int:
    """Return to how many bytes a text or a profile unpacks; what is no packed text has no size."""
    _, _, rest = content.partition(b"\0")
    if name == b"iTXt":
        if rest[:1] != b"\1":
            return 0
        packed = rest[2:].split(b"\0", 2)[-1]
    else:
        packed = rest[1:]
    unpacking = zlib.decompressobj()
    try:
        size = len(unpacking.decompress(packed, left + 1))
    except zlib.error:
        return 0
    if size > left:
        raise Bad(
            "too_large",
            f"the PNG's texts and profile unpack to more than {_MAX_TEXT} bytes (chunk {_shown(name)}); leave them out",
        )
    return size


def _read_webp(data: bytes) -> Header:
    if len(data) < 30:
        _truncated("WebP", len(data))
    end = 8 + int.from_bytes(data[4:8], "little")
    if len(data) < end:
        _truncated("WebP", len(data))
    first = data[12:16]
    if first == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
    elif first == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif first == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        _broken("WebP", f"its first chunk is {_shown(first)}; VP8X, VP8 or VP8L is expected")
    if not width or not height:
        _broken("WebP", f"it is {width} × {height} pixels")
    orientation = 1
    for name, start, stop in _webp_chunks(data, end):
        if name in (b"ANIM", b"ANMF") or (name == b"VP8X" and data[start] & 0x02):
            raise Bad("animated", f"the WebP is animated (chunk {_shown(name)}); allowed: one picture a record")
        if name == b"EXIF":
            orientation = _orientation(data[start:stop].removeprefix(b"Exif\0\0"))
    _check_end(data, end + end % 2, "WebP")
    return Header("WebP", width, height, orientation, data)


def _webp_chunks(data: bytes, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and stop of every chunk's content."""
    at = 12
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        start, stop = at + 8, at + 8 + length
        if stop > end:
            _broken("WebP", f"chunk {_shown(name)} at byte {at} reaches beyond the end")
        yield name, start, stop
        at = stop + length % 2


def _orientation(exif: bytes) -> int:
    """Return EXIF's orientation; 1 where it is not told, or not readable: it is no reason to lose a picture."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (n_entries,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(n_entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, at + 2 + 12 * entry)
            if tag == 0x0112:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _check_end(data: bytes, end: int, name: str) -> None:
    behind = data[end:].lstrip(b"\0")  # some cameras fill a block up
    if not behind:
        return
    if name == "JPEG" and behind.startswith(b"\xff\xd8\xff"):
        at = len(data) - len(behind)
        raise Bad("animated", f"a second JPEG begins at byte {at} (MPO, Ultra HDR); allowed: one picture a record")
    raise Bad(
        "trailing_data",
        f"behind the end of the {name} at byte {end} lie {len(data) - end} bytes that look like {looks_like(behind)}; "
        "send the picture alone",
    )


def _truncated(name: str, n_bytes: int) -> NoReturn:
    raise Bad("truncated_image", f"the {name} breaks off after {n_bytes} bytes; send the whole file")


def _broken(name: str, why: str) -> NoReturn:
    raise Bad("broken_image", f"the {name} is damaged: {why}; write the file anew")


def _shown(name: bytes) -> str:
    return ascii(name.decode("latin-1"))[1:-1].strip()
