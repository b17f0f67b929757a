"""Which versions are in use, and how that changes: pure functions from one pointer to the next, and its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from srr_stream.sealed_json import seal, unseal


@dataclass(frozen=True)
class Pointer:
    """Which versions are in use. Two pointers are equal if they name the same ones, whyever."""

    champion: int | None = None
    previous: int | None = None
    challenger: int | None = None
    """Proposed, and waiting for a person to promote it."""
    reason: str | None = field(default=None, compare=False)
    """Why the champion is the champion, in words; None in files of older programs."""
    at: str | None = field(default=None, compare=False)
    """Since when, ISO 8601."""
    rolled_back: int | None = field(default=None, compare=False)
    """What the last rollback took out of use: a rollback does not go back to it, only a promotion does."""

    @property
    def in_use(self) -> frozenset[int]:
        """The versions that must stay."""
        return frozenset({self.champion, self.previous, self.challenger} - {None})  # type: ignore[arg-type]


def promoted(old: Pointer, version: int, *, reason: str, at: str) -> Pointer:
    """Return the pointer after a promotion. A challenger stays, unless it is the one."""
    is_again = old.champion == version
    return Pointer(
        champion=version,
        previous=old.previous if is_again else old.champion,
        challenger=old.challenger if old.challenger != version else None,
        reason=reason or None,
        at=at,
        rolled_back=old.rolled_back if is_again else None,
    )


def rolled_back(old: Pointer, *, reason: str, at: str) -> Pointer:
    """Return the pointer after a rollback to `previous`, which must not be None."""
    if old.previous is None:
        raise ValueError("there is no previous version to roll back to")
    return replace(promoted(old, old.previous, reason=reason, at=at), rolled_back=old.champion)


def pointer_to_json(pointer: Pointer) -> bytes:
    """Return a pointer as it is stored."""
    return seal(asdict(pointer))


def pointer_from_json(raw: bytes) -> Pointer:
    """Return a stored pointer, also one of an older program; raises `ValueError` if it is none, or is altered."""
    try:
        pointer = Pointer(**unseal(raw))
    except TypeError as error:
        raise ValueError(f"does not fit: {error}") from error
    says = asdict(pointer)
    words = {key: says.pop(key) for key in ("reason", "at")}
    wrong = {key: value for key, value in says.items() if value is not None and not (type(value) is int and value > 0)}
    wrong |= {key: value for key, value in words.items() if not isinstance(value, str | None)}
    if wrong:
        raise ValueError(f"does not fit: {wrong}, allowed: numbers of versions, words for reason and at, and null")
    return pointer
