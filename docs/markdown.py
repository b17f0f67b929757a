"""Pieces of Markdown that the generated pages are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_MARKUP = re.compile(r"[^\w\- ]")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; a bar within a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def code(text: object) -> str:
    """Return a text as code within a line.

    Examples
    --------
    >>> code(0.005)
    '`0.005`'
    """
    return f"`{text}`"


def plain_code(text: str) -> str:
    """Return the text of a docstring with its code as Markdown has it, in one line.

    Examples
    --------
    >>> plain_code("Set by ``training.every``,\\nif at all; see :class:`srr_stream.web.desk.Desk`.")
    'Set by `training.every`, if at all; see `Desk`.'
    """
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    return " ".join(text.replace("``", "`").split())


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading.

    Examples
    --------
    >>> anchor("GET `/v1/models/{version}`")
    'get-v1modelsversion'
    """
    return _MARKUP.sub("", heading.strip().lower()).replace(" ", "-")
