"""Files of pictures into arrays of one size and mode, on both cores, each bad one with its reason.

What a file says of itself is checked first (:mod:`consumers.image_headers`); only then does Pillow see it, and of
Pillow only the codec of that format.
"""

from __future__ import annotations

import binascii
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from consumers.errors import LibraryMissing
from consumers.image_headers import MAX_SIDE, Header, read_header
from consumers.reasons import Bad
from consumers.records import ImageSpec

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 4096 * 4096
"""The largest picture that is decoded, in pixels, unless something else is said."""
MOST_PIXELS = 89_478_485
"""What can be said at most: beyond it Pillow itself warns, and then refuses."""

_MAX_THREADS = 4
_DRAFT_GAP = 2
"""A JPEG is decoded at a half, quarter or eighth if that is still so many times the wanted size: no loss is seen."""
_REDUCING_GAP = 3.0
"""Whole pixels are averaged first, as long as so many times the wanted size is left. It also bounds the memory for a
picture that is one pixel wide and very high."""
_LARGE = 32 << 20
"""Bytes that decoding takes, from which on only one picture of the whole process is decoded at a time."""
_BYTES_PER_PIXEL = {"PNG": 12, "WebP": 16}
"""At most, while decoding: libwebp holds two canvases and Pillow two copies; transparency takes a second image."""
_UNPACKED_AT_ONCE = 1 << 20
_TRANSPOSE = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF's orientation → the number of ``PIL.Image.Transpose`` that undoes it."""

_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Warning,
)
"""What Pillow raises about a damaged file: its formats each have their own, and none is documented as the only one."""


def decode_image(data: bytes, spec: ImageSpec, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return a picture as its field declares it.

    Turned upright by EXIF; transparent parts are black; of 16 bits the upper 8; colour to grey by ITU-R 601; then
    resized by ``spec.resize``.

    Parameters
    ----------
    data
        A whole JPEG, PNG or WebP file.
    max_pixels
        A picture with more pixels in its header is bad, whatever the size wanted; at most `MOST_PIXELS`. Memory for
        one picture grows with it: up to 16 bytes a pixel.

    Returns
    -------
    numpy.ndarray
        ``(height, width, channels)``, uint8.

    Raises
    ------
    Bad
        What :func:`consumers.image_headers.read_header` raises; ``too_many_pixels``; ``wrong_size``: with
        ``resize="exact"``; ``truncated_image`` or ``broken_image``: what Pillow finds out.
    LibraryMissing
        If Pillow is not installed.
    """
    require_pillow()
    return _decode(data, spec, max_pixels)


def from_base64(text: str) -> bytes:
    """Return the bytes that base64, or a ``data:`` URL with it, stands for; line breaks may be in it.

    Raises
    ------
    Bad
        ``not_base64``.
    """
    if text.startswith("data:"):
        kind, comma, text = text.partition(",")
        if not comma or not kind.endswith(";base64"):
            raise Bad("not_base64", f"the picture is the URL {kind[:40]!r}; allowed: base64, or data:image/...;base64,")
    if "\n" in text:
        text = text.replace("\r", "").replace("\n", "")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        is_for_urls = "-" in text or "_" in text
        advice = "write + and / for - and _" if is_for_urls else "allowed: the standard alphabet, padded with ="
        raise Bad("not_base64", f"the picture is no base64 ({error}): {text[:40]!r}; {advice}") from error


class ImagePool:
    """Decode many pictures at once, with threads that live on.

    Pillow gives the interpreter's lock back while it decodes, so threads suffice to use the cores.

    Parameters
    ----------
    spec
        The size and mode of every picture.
    max_pixels
        See :func:`decode_image`.
    n_threads
        At least 1; left out, as many as there are cores for this process, up to 4.

    Raises
    ------
    LibraryMissing
        If Pillow is not installed.

    Examples
    --------
    >>> pool = ImagePool(ImageSpec(2, 2, "grey"))
    >>> images, bad = pool.decode([b"GIF89a"])
    >>> images.shape, bad[0].reason
    ((1, 2, 2, 1), 'not_an_image')
    """

    def __init__(self, spec: ImageSpec, *, max_pixels: int = MAX_PIXELS, n_threads: int | None = None) -> None:
        require_pillow()
        self._spec = spec
        self._max_pixels = max_pixels
        self._n_others = (n_threads or min(_MAX_THREADS, n_cores())) - 1
        self._others = ThreadPoolExecutor(max(1, self._n_others), thread_name_prefix="images")

    def decode(self, files: Sequence[bytes | None]) -> tuple[NDArray[np.uint8], dict[int, Bad]]:
        """Decode every file that is not None.

        Returns
        -------
        images
            ``(n, height, width, channels)``, uint8; 0 where there is no picture.
        bad
            Row → why the file is no good.
        """
        spec = self._spec
        images = np.zeros((len(files), spec.height, spec.width, spec.n_channels), dtype=np.uint8)
        bad: dict[int, Bad] = {}
        left = deque((row, data) for row, data in enumerate(files) if data is not None)

        def decode_what_is_left() -> None:
            while True:
                try:
                    row, data = left.popleft()
                except IndexError:
                    return
                try:
                    images[row] = _decode(data, spec, self._max_pixels)
                except Bad as why:
                    bad[row] = why.bare()

        others = [self._others.submit(decode_what_is_left) for _ in range(min(self._n_others, len(left) - 1))]
        decode_what_is_left()
        for other in others:
            other.result()
        return images, bad


def n_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_pillow() -> None:
    """Raise `LibraryMissing` if Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise LibraryMissing("pictures need Pillow; pip install 'srr-stream[images]'") from error


_ONE_LARGE = threading.Lock()


def _decode(data: bytes, spec: ImageSpec, max_pixels: int) -> NDArray[np.uint8]:
    header = read_header(data)
    _check_size(header, spec, max_pixels)
    scale = _draft_scale(header, spec)
    with _ONE_LARGE if _memory(header, scale) > _LARGE else nullcontext():
        try:
            image = _plain(_CODECS[header.format](header, spec, scale), spec)
            image = _upright(_resized(image, header, spec, scale), header.orientation)
            image = _flat(_padded(image, spec), spec)
            return np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(spec.height, spec.width, spec.n_channels)
        except MemoryError as error:
            raise Bad(
                "too_many_pixels", f"no memory for {header.width} × {header.height} pixels; lower record.max_pixels"
            ) from error
        except _PILLOW_ERRORS as error:
            is_short = "truncated" in str(error) or "not enough" in str(error)
            reason, what = ("truncated_image", "break off") if is_short else ("broken_image", "are damaged")
            raise Bad(reason, f"the pixels of the {header.format} {what}: {error}; write the file anew") from error


def _check_size(header: Header, spec: ImageSpec, max_pixels: int) -> None:
    width, height = header.size
    allowed = min(max_pixels, MOST_PIXELS)
    if width * height > allowed or max(width, height) > MAX_SIDE:
        raise Bad(
            "too_many_pixels",
            f"the {header.format} is {width} × {height} = {width * height} pixels; allowed: {allowed} "
            f"(record.max_pixels), {MAX_SIDE} a side",
        )
    if spec.resize == "exact" and (width, height) != (spec.width, spec.height):
        raise Bad(
            "wrong_size",
            f"the {header.format} is {width} × {height} pixels; allowed: {spec.width} × {spec.height}, "
            "or another resize than exact",
        )


def _draft_scale(header: Header, spec: ImageSpec) -> int:
    """Return by how much a JPEG is made smaller while it is decoded: 1, 2, 4 or 8."""
    if header.format != "JPEG":
        return 1
    width, height = header.size
    wanted = (min if spec.resize == "pad" else max)(spec.width / width, spec.height / height)
    return next((scale for scale in (8, 4, 2) if scale * wanted * _DRAFT_GAP <= 1), 1)


def _memory(header: Header, scale: int) -> int:
    """Return how many bytes decoding takes at most."""
    n_pixels = header.width * header.height
    if header.format != "JPEG":
        return n_pixels * _BYTES_PER_PIXEL[header.format]
    n_coefficients = n_pixels * header.n_components if header.is_progressive else 0
    return 8 * n_pixels // scale**2 + 2 * n_coefficients


def _decode_jpeg(header: Header, spec: ImageSpec, scale: int) -> Image:
    """Call the codec itself: for a small picture Pillow's reading of the header takes longer than all the rest."""
    import PIL.Image

    mode = "CMYK" if header.n_components == 4 else "L" if spec.mode == "grey" else "RGB"
    raw_mode = "CMYK;I" if mode == "CMYK" else mode  # inverted, as Adobe writes it and Pillow reads it
    size = -(-header.width // scale), -(-header.height // scale)
    return PIL.Image.frombytes(mode, size, header.content, "jpeg", raw_mode, "", scale, 0)


def _decode_png(header: Header, spec: ImageSpec, scale: int) -> Image:
    from PIL.PngImagePlugin import PngImageFile

    _check_complete(header)
    return _loaded(PngImageFile(BytesIO(header.content)))


def _check_complete(header: Header) -> None:
    """Unpack the pixels of a PNG once, and forget them: Pillow takes lines that are missing for black ones."""
    unpacking, packed, left = zlib.decompressobj(), header.packed, header.n_unpacked
    while left > 0 and (part := unpacking.decompress(packed, min(left, _UNPACKED_AT_ONCE))):
        packed, left = unpacking.unconsumed_tail, left - len(part)
    if left > 0:
        raise Bad(
            "truncated_image",
            f"the pixels of the PNG break off {left} bytes before their end; send the whole file",
        )


def _decode_webp(header: Header, spec: ImageSpec, scale: int) -> Image:
    from PIL.WebPImagePlugin import WebPImageFile

    return _loaded(WebPImageFile(BytesIO(header.content)))


def _loaded(image: Image) -> Image:
    image.load()
    return image


_CODECS: dict[str, Callable[[Header, ImageSpec, int], Image]] = {
    "JPEG": _decode_jpeg,
    "PNG": _decode_png,
    "WebP": _decode_webp,
}


def _plain(image: Image, spec: ImageSpec) -> Image:
    """Return the picture as L or RGB; one with transparency as RGBa, colours times opacity: black where it is none."""
    import PIL.Image

    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        return image.convert("RGBa")
    if image.mode == "I;16":  # Pillow would cut it off at 255; of colours in 16 bits it takes the upper 8
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    wanted = _pillow_mode(spec)
    return image if image.mode == wanted else image.convert(wanted)


def _flat(image: Image, spec: ImageSpec) -> Image:
    import PIL.Image

    if image.mode == "RGBa":
        image = PIL.Image.merge("RGB", image.split()[:3])
    wanted = _pillow_mode(spec)
    return image if image.mode == wanted else image.convert(wanted)


def _pillow_mode(spec: ImageSpec) -> Literal["L", "RGB"]:
    return "L" if spec.mode == "grey" else "RGB"


def _upright(image: Image, orientation: int) -> Image:
    if orientation == 1:
        return image
    from PIL.Image import Transpose

    return image.transpose(Transpose(_TRANSPOSE[orientation]))


def _resized(image: Image, header: Header, spec: ImageSpec, scale: int) -> Image:
    """Return the picture, not upright yet, in the size wanted, or in the one that padding makes it."""
    wide, high = (spec.width, spec.height) if header.orientation < 5 else (spec.height, spec.width)
    width, height = header.width, header.height
    left = top = 0.0
    if spec.resize == "pad":
        factor = min(1.0, wide / width, high / height)
        wide, high = max(1, round(width * factor)), max(1, round(height * factor))
    elif spec.resize == "crop":
        factor = max(wide / width, high / height)
        left, top = max(0.0, (width - wide / factor) / 2), max(0.0, (height - high / factor) / 2)
    if (width, height) == (wide, high):
        return image
    from PIL.Image import Resampling

    # The last column and line of a JPEG at a fraction may stand for less than a whole one: not all of them is seen.
    box = (left / scale, top / scale, (width - left) / scale, (height - top) / scale)
    return image.resize((wide, high), Resampling.BILINEAR, box, _REDUCING_GAP)


def _padded(image: Image, spec: ImageSpec) -> Image:
    """Return the picture in the middle of black, if it is smaller than wanted."""
    if image.size == (spec.width, spec.height):
        return image
    import PIL.Image

    padded = PIL.Image.new(image.mode, (spec.width, spec.height))
    padded.paste(image, ((spec.width - image.width) // 2, (spec.height - image.height) // 2))
    return padded
