"""A contact sheet: the pictures that were flagged, each beside its heat map, for a person to look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from consumers.decoding import Decoder
from consumers.records import StoredRecord
from srr_stream.demo.summary import Verdict
from srr_stream.overlays import enlarged, overlay

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

    from models.detector import Model

MOST, LEAST = 48, 24
"""Tiles of a sheet; where fewer are flagged than the second, the others are the next ones by severity."""

_COLUMNS = 6
_SIDE = 128
"""Pixels of a picture's side on the sheet, about."""
_GAP, _MARGIN, _CAPTION, _HEADER, _FRAME = 18, 24, 40, 92, 3
_INK, _FAINT, _PAPER = "#222222", "#6b6b6b", "#ffffff"
_ANOMALY, _FALSE_ALARM, _NOT_FLAGGED = "#b8002a", "#1f5fa8", "#9a9a9a"


@dataclass(frozen=True)
class Tile:
    """One picture of the sheet."""

    verdict: Verdict
    picture: NDArray[np.uint8]
    """``(h, w, channels)``."""
    heat: NDArray[np.float32]
    """``(h, w)``, by the version of the verdict."""
    kind: str | None
    """What it is: ``normal``, or the name of the anomaly; None where nobody knows."""


def choose(verdicts: Sequence[Verdict], *, most: int = MOST, least: int = LEAST) -> list[Verdict]:
    """Return the flagged records with the highest severities, filled up with others if they are few; highest first.

    A record has one verdict; of doubles the first counts.
    """
    first = {verdict.id: verdict for verdict in reversed(verdicts)}.values()
    ranked = sorted(first, key=lambda verdict: (not verdict.flagged, -verdict.severity, verdict.id))
    n_flagged = sum(verdict.flagged for verdict in ranked)
    return ranked[: min(most, max(least, n_flagged))]


def make_tiles(
    verdicts: Sequence[Verdict],
    values: Mapping[str, bytes],
    kinds: Mapping[str, str],
    decoder: Decoder,
    load: Callable[[int], Model],
) -> list[Tile]:
    """Return the tiles of some verdicts, heat maps by the versions that gave them.

    Parameters
    ----------
    values
        Event id → the record.
    kinds
        Event id → what it is; empty where nobody knows.
    load
        Version → its model; asked once for each.
    """
    raw = [StoredRecord("", 0, i, 0, None, values[verdict.id]) for i, verdict in enumerate(verdicts)]
    features = decoder.decode(raw).batch.features
    ((name, pictures),) = features.items()
    rows_by_version: dict[int, list[int]] = defaultdict(list)
    for row, verdict in enumerate(verdicts):
        rows_by_version[verdict.version].append(row)
    tiles: dict[int, Tile] = {}
    for version, rows in rows_by_version.items():
        heats = load(version).heat_maps({name: pictures[rows]})
        for row, heat in zip(rows, heats, strict=True):
            verdict = verdicts[row]
            tiles[row] = Tile(verdict, pictures[row], heat, kinds.get(verdict.id))
    return [tiles[row] for row in range(len(verdicts))]


def draw_sheet(path: Path, tiles: Sequence[Tile], *, title: str) -> None:
    """Write the contact sheet as a PNG.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    import PIL.Image
    import PIL.ImageDraw

    fonts = _Fonts()
    height, width = tiles[0].heat.shape if tiles else (_SIDE, _SIDE)
    scale = max(1, _SIDE // max(height, width))
    tile_width, tile_height = 2 * width * scale + 3 * _FRAME, height * scale + 2 * _FRAME + _CAPTION
    n_rows = -(-len(tiles) // _COLUMNS)
    size = (
        2 * _MARGIN + _COLUMNS * (tile_width + _GAP) - _GAP,
        _MARGIN + _HEADER + n_rows * (tile_height + _GAP) - _GAP + _MARGIN,
    )
    sheet = PIL.Image.new("RGB", size, _PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=fonts.title)
    _draw_legend(draw, fonts, _MARGIN, _MARGIN + 40, has_kinds=any(tile.kind is not None for tile in tiles))
    for place, tile in enumerate(tiles):
        row, column = divmod(place, _COLUMNS)
        x, y = _MARGIN + column * (tile_width + _GAP), _MARGIN + _HEADER + row * (tile_height + _GAP)
        pair = [overlay(tile.picture, np.zeros_like(tile.heat)), overlay(tile.picture, tile.heat)]
        colour, words = _what(tile)
        bottom = y + height * scale + 2 * _FRAME
        draw.rectangle((x, y, x + tile_width - 1, bottom - 1), fill=colour)
        for n, pixels in enumerate(pair):
            at = (x + _FRAME + n * (width * scale + _FRAME), y + _FRAME)
            sheet.paste(PIL.Image.fromarray(enlarged(pixels, scale)), at)
        draw.text((x, bottom + 3), words, fill=colour, font=fonts.strong)
        _, partition, offset = tile.verdict.id.rsplit("-", 2)
        facts = f"severity {tile.verdict.severity:.2f}   v{tile.verdict.version}   {partition}-{offset}"
        draw.text((x, bottom + 20), facts, fill=_FAINT, font=fonts.small)
    sheet.save(path, "PNG", optimize=True)


def _what(tile: Tile) -> tuple[str, str]:
    """Return the colour and the words of a tile."""
    kind = tile.kind or ""
    if not tile.verdict.flagged:
        return _NOT_FLAGGED, f"not flagged: {kind}" if kind else "not flagged"
    if kind == "normal":
        return _FALSE_ALARM, "normal: a false alarm"
    return _ANOMALY, kind or "flagged"


def _draw_legend(draw: ImageDraw, fonts: _Fonts, x: int, y: int, *, has_kinds: bool) -> None:
    text = (
        "Left the picture, right where it is unusual, by the version that gave the verdict (v). "
        "Severity 1 is the boundary. Last: partition and offset in the topic."
    )
    draw.text((x, y), text, fill=_FAINT, font=fonts.small)
    if has_kinds:
        entries = [
            (_ANOMALY, "flagged, and an anomaly by the labels, which no model saw"),
            (_FALSE_ALARM, "flagged, and normal"),
            (_NOT_FLAGGED, "not flagged, next by severity"),
        ]
    else:
        entries = [(_ANOMALY, "flagged"), (_NOT_FLAGGED, "not flagged, next by severity")]
    for colour, words in entries:
        draw.rectangle((x, y + 22, x + 12, y + 34), outline=colour, width=_FRAME)
        draw.text((x + 19, y + 20), words, fill=_INK, font=fonts.small)
        x += 19 + int(draw.textlength(words, font=fonts.small)) + 26


class _Fonts:
    """DejaVu Sans, which matplotlib brings along."""

    def __init__(self) -> None:
        import matplotlib
        from PIL.ImageFont import truetype

        def font(name: str, size: int) -> FreeTypeFont:
            return truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)

        self.title = font("DejaVuSans-Bold", 22)
        self.strong = font("DejaVuSans-Bold", 13)
        self.small = font("DejaVuSans", 12)
