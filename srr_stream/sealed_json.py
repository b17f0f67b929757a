"""JSON objects that show whether they were altered: one more key, `digest`, is the checksum of all the others.

A bit that flips on a disk mostly leaves valid JSON behind, with another number in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_DIGEST = "digest"


class NotSealed(ValueError):
    """It is JSON, but not what was written."""


def seal(content: Mapping[str, Any]) -> bytes:
    """Return an object as JSON with its digest; raises `ValueError` for numbers that JSON does not know."""
    plain = json.loads(json.dumps(content, allow_nan=False))
    return json.dumps({**plain, _DIGEST: _digest(plain)}, indent=1).encode()


def unseal(raw: bytes) -> dict[str, Any]:
    """Return an object without its digest. One that has none, as older programs and people write it, is taken as it is.

    Raises
    ------
    NotSealed
        If the digest is that of another content.
    ValueError
        If it is no JSON object.
    """
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError("must be an object")
    digest = content.pop(_DIGEST, None)
    if digest is not None and digest != _digest(content):
        raise NotSealed(f"is altered: its digest is not {digest!r}")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
