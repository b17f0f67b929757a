"""What records that nobody has described are made of: which fields a model can learn from, which not and why.

Pure: records in, :class:`Inferred` out. Getting the records is :mod:`srr_stream.first_look.sampling`'s, writing
settings :mod:`srr_stream.first_look.settings`'s.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median
from typing import Any, Literal

import orjson

from consumers.images import from_base64
from consumers.reasons import Bad
from consumers.records import FieldKind, ImageSpec, RawRecord
from consumers.sources.files import IMAGE_BASE64
from consumers.sources.image_files import common_spec
from srr_stream.errors import NotEnoughRecords

MAX_CATEGORIES = 200
"""A text with more different values is no category: a model gives 64 of them a column of their own."""
_FEW_CATEGORIES = 20
"""A text with at most so many values is never taken for free text, however few records there are."""
_MAX_LABELS = 100
"""What is named like a label and has more values is something else."""
_MAX_BAD = 0.01
"""So large a share of records may not fit the fields that are declared."""
_MOST_LISTED = 200
"""Fields left out that are told one by one."""
_MAX_DEPTH = 20
_RARE = 0.01
"""A field that fewer records have is the key of a map, not a field; from 100 records on."""
_MIN_FOR_GROWTH = 20
"""So many values tell whether something grows."""
_TIME_ORDER = 0.9
"""The record's own time is in the log's order for at least this share of steps: clocks of senders differ."""
_EPOCH_S, _EPOCH_MS = (1e9, 4e9), (1e12, 4e12)
"""Years 2001 to 2096."""
_EPOCH_FINER = (1e15, 4e18)
"""The same in µs and ns, which no decoder reads."""
_LABEL = re.compile(
    r"(true_?|gt_?)?(is_?|has_?)?"
    r"(labels?|class|target|anomal(y|ous)|outliers?|fraud(ulent)?|attack(_?(cat|type))?|malicious|intrusion|"
    r"ground_?truth|y_?true|y|abnormal|fault(y)?|defect(ive)?)(_?(label|class|flag))?",
    re.IGNORECASE,
)
_ID_CAMEL = re.compile(r".*[a-z](?:Id|ID|Uuid|UUID)")
_ID_SNAKE = re.compile(r"(?:.*[_\-. ])?(?:id|uuid|guid|pk|hash|serial)", re.IGNORECASE)
_TIME_NAME = re.compile(r"(time|timestamp|date|(^|[^a-z])ts|_at|(^|[^a-z])at)$", re.IGNORECASE)
_DATE_LIKE = re.compile(r"\d{1,4}[./ -](\d{1,2}|[A-Za-z]{3,9})[./ -]\d{1,4}([ T,].*)?")
_ELSEWHERE = object()
"""The value lies below something that is no object."""


@dataclass(frozen=True)
class FoundField:
    """One field of the records: what it is, what was seen, and why it is left out if it is."""

    name: str
    path: tuple[str, ...]
    kind: FieldKind | None
    """What it is, or would be if it were put back; None if nothing can be made of it."""
    is_required: bool
    seen: str
    """For people: how many records have it, and which values."""
    why_not: str | None = None
    """Why it is left out; None: it is not."""
    note: str = ""
    """For people: what else to know."""
    is_label: bool = False
    image: ImageSpec | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        parts = {**asdict(self), "path": list(self.path), "kind": self.kind.value if self.kind else None}
        return {name: value for name, value in parts.items() if name != "image" or value is not None}


@dataclass(frozen=True)
class Inferred:
    """What a sample of records is made of."""

    format: Literal["json", "image"]
    n_records: int
    """Of the sample."""
    n_unreadable: int
    """How many of them are no JSON object, or no picture."""
    fields: tuple[FoundField, ...]
    left_out: tuple[FoundField, ...] = ()
    n_more_left_out: int = 0
    """Further fields that are left out, each in few records."""
    time_field: str | None = None

    @property
    def labels(self) -> tuple[FoundField, ...]:
        """What was left out for looking like a label."""
        return tuple(found for found in self.left_out if found.is_label)


@dataclass(frozen=True)
class _Column:
    """The values of one path, a row for each object of the sample."""

    name: str
    path: tuple[str, ...]
    values: Sequence[Any]
    """None where there is none."""
    present: Sequence[Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "present", [value for value in self.values if value is not None])

    @property
    def is_required(self) -> bool:
        return len(self.present) == len(self.values)

    def share(self, *kinds: type) -> float:
        """Return how much of what is present is of these types."""
        return sum(type(value) in kinds for value in self.present) / max(1, len(self.present))


def infer(records: Sequence[RawRecord], *, max_categories: int = MAX_CATEGORIES) -> Inferred:
    """Return the fields of records, in the order in which they first come up.

    Numbers are numeric, true and false boolean, texts with few values categorical; the first time that runs with the
    log is the record's own. Objects are looked into; their fields are named by their path with dots. A field that is
    null or absent anywhere is not required. So many fields are left out that 99 % of the readable records fit the rest.

    Parameters
    ----------
    records
        In the order of the log, partition by partition.
    max_categories
        A text with more different values is left out.

    Raises
    ------
    NotEnoughRecords
        If there are no records, most are neither JSON objects nor pictures, or none of their fields is of use.
    """
    if not records:
        raise NotEnoughRecords("there are no records to look at; send some first, or give a file of examples")
    objects = [(record, parsed) for record in records if (parsed := _object(record.value)) is not None]
    pictures = [record.value for record in records if record.value and _is_picture(record.value)]
    if len(pictures) > len(objects):
        return _pictures(records, pictures)
    if 2 * len(objects) < len(records):
        raise NotEnoughRecords(_what_else(records, len(objects)))
    partitions = [(record.topic, record.partition) for record, _ in objects]
    columns, n_rare, odd_paths = _columns([parsed for _, parsed in objects])
    found = [_field(column, partitions, max_categories) for column in columns]
    found = _with_one_picture(_with_one_time(found, columns, partitions))
    found = _fitting(found, columns)
    fields = tuple(one for one in found if one.why_not is None)
    if not any(one.kind is not FieldKind.TIMESTAMP for one in fields):
        reasons = "; ".join(f"{one.name}: {one.why_not}" for one in found if one.why_not)[:600]
        raise NotEnoughRecords(f"no field is left that a model could learn from: {reasons or 'the objects are empty'}")
    left_out = [*(one for one in found if one.why_not is not None), *odd_paths]
    times = [one.name for one in fields if one.kind is FieldKind.TIMESTAMP]
    return Inferred(
        "json",
        len(records),
        len(records) - len(objects),
        fields,
        tuple(left_out[:_MOST_LISTED]),
        n_rare + max(0, len(left_out) - _MOST_LISTED),
        times[0] if times else None,
    )


# Records


def _object(value: bytes | None) -> dict[str, Any] | None:
    try:
        parsed = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _is_picture(value: bytes) -> bool:
    return value.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (
        value[:4] == b"RIFF" and value[8:12] == b"WEBP"
    )


def _pictures(records: Sequence[RawRecord], pictures: Sequence[bytes]) -> Inferred:
    spec = common_spec(pictures)
    if spec is None:
        raise NotEnoughRecords(f"none of {len(pictures):,} pictures can be read; allowed: JPEG, PNG, WebP")
    sizes = f"{len(pictures):,} of {len(records):,}, the first {spec.width} × {spec.height} ({spec.mode})"
    found = FoundField("picture", ("picture",), FieldKind.IMAGE, True, sizes, image=spec)
    return Inferred("image", len(records), len(records) - len(pictures), (found,))


def _what_else(records: Sequence[RawRecord], n_objects: int) -> str:
    value = next((record.value for record in records if record.value and _object(record.value) is None), b"")
    if not value:
        what = "have no value"
    elif value[:1] == b"\0":
        what = "begin with a zero byte, as Avro, Protobuf or JSON Schema from a schema registry do"
    elif value.lstrip()[:1] in b'["0123456789-tfn':
        what = "are JSON, but no objects" if _is_json(value) else "are text, but no JSON"
    else:
        what = "are no JSON"
    shown = value[:40].decode("utf-8", "replace")
    return (
        f"{len(records) - n_objects:,} of {len(records):,} records {what} (one begins: {shown!r}); "
        "a record must be one JSON object, or the file of a picture"
    )


def _is_json(value: bytes) -> bool:
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return False
    return True


# Columns


def _leaves(parsed: Mapping[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in parsed.items():
        if isinstance(value, dict) and len(at) < _MAX_DEPTH:
            yield from _leaves(value, (*at, key))
        else:
            yield (*at, key)


def _columns(objects: Sequence[dict[str, Any]]) -> tuple[list[_Column], int, list[FoundField]]:
    """Return the columns, how many paths too few records have, and what no setting can name."""
    counts = Counter(path for parsed in objects for path in _leaves(parsed))
    columns: list[_Column] = []
    unnameable = []
    n_rare = 0
    taken: set[str] = set()
    for path, n in counts.items():
        name = ".".join(path)
        if len(objects) >= 100 and n < _RARE * len(objects):
            n_rare += 1
            continue
        seen = f"{n:,} of {len(objects):,}"
        if not name or (len(path) > 1 and any("." in key or not key for key in path)):
            why = "a key on its path is empty or has a dot, which the dotted path of the settings cannot say"
            unnameable.append(FoundField(name, path, None, False, seen, why))
        elif name in taken:
            unnameable.append(FoundField(name, path, None, False, seen, "another field has the same name with dots"))
        else:
            taken.add(name)
            columns.append(_Column(name, path, [_at(parsed, path) for parsed in objects]))
    return columns, n_rare, unnameable


def _at(parsed: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if type(parsed) is not dict:
            return None if parsed is None else _ELSEWHERE
        parsed = parsed.get(key)
    return parsed


def _field(column: _Column, partitions: Sequence[tuple[str, int]], max_categories: int) -> FoundField:
    """Say what a column is by itself."""
    kind, why_not, note = _kind(column, partitions, max_categories)
    image = common_spec(map(_file, column.present)) if kind is FieldKind.IMAGE else None
    if kind is FieldKind.IMAGE and image is None:
        kind, why_not = None, "its pictures cannot be read"
    found = FoundField(
        column.name, column.path, kind, column.is_required, _seen(column, kind), why_not, note, image=image
    )
    distinct = _n_distinct(column.present)
    last = column.path[-1]
    limit = 2 if last.lower() == "y" else _MAX_LABELS
    if column.present and _LABEL.fullmatch(last) and distinct <= limit:
        why = "looks like a label; the model must not learn from what it is measured with"
        return replace(found, why_not=why, is_label=True)
    return found


def _kind(
    column: _Column, partitions: Sequence[tuple[str, int]], max_categories: int
) -> tuple[FieldKind | None, str | None, str]:
    """Return what a column is, why it is left out if it is, and a note."""
    enough = 1 - _MAX_BAD
    if not column.present:
        return FieldKind.NUMERIC, "it never has a value", ""
    if column.share(list) > _MAX_BAD:
        return None, "lists are no features", ""
    if column.share(bool) >= enough or _is_truth(column.present):
        return FieldKind.BOOLEAN, None, ""
    if column.share(int, float) >= enough:
        return _number(column, partitions, max_categories)
    if column.share(str) >= enough:
        texts = [value for value in column.present if type(value) is str]
        return _text(texts, max_categories)
    if column.share(str, bool, int, float) >= enough:
        return _category(column.present, max_categories)
    return None, "it is an object in some records and something else in others", ""


def _is_truth(values: Sequence[Any]) -> bool:
    kinds = set(map(type, values))
    return bool in kinds and kinds <= {bool, int, float} and set(values) <= {0, 1}


def _number(
    column: _Column, partitions: Sequence[tuple[str, int]], max_categories: int
) -> tuple[FieldKind | None, str | None, str]:
    numbers = [value for value in column.present if type(value) in (int, float)]
    low, high = min(numbers), max(numbers)
    grows = _growth(column, partitions)
    if any(least <= low and high <= most for least, most in (_EPOCH_S, _EPOCH_MS)) and (
        _TIME_NAME.search(column.path[-1]) or grows >= _TIME_ORDER
    ):
        return FieldKind.TIMESTAMP, None, ""
    if _EPOCH_FINER[0] <= low and high <= _EPOCH_FINER[1] and _TIME_NAME.search(column.path[-1]):
        return None, "a time in µs or ns since the epoch; only seconds and milliseconds are read", ""
    n_distinct = len(set(numbers))
    is_whole = all(float(value).is_integer() for value in numbers)
    if is_whole and _is_id(column.path[-1]):
        if n_distinct == 1:
            return FieldKind.CATEGORICAL, "an id that is always the same", ""
        if n_distinct <= min(max_categories, max(_FEW_CATEGORIES, len(numbers) // 2)):
            return FieldKind.CATEGORICAL, None, "numbers that name something, read as categories"
        return FieldKind.NUMERIC, f"an id by its name: {n_distinct:,} different numbers", ""
    if grows == 1.0 and n_distinct >= 0.99 * len(numbers):
        return FieldKind.NUMERIC, "grows from record to record, as ids and counters do: every new one is a surprise", ""
    return FieldKind.NUMERIC, None, ""


def _is_id(name: str) -> bool:
    return _ID_SNAKE.fullmatch(name) is not None or _ID_CAMEL.fullmatch(name) is not None


def _text(texts: Sequence[str], max_categories: int) -> tuple[FieldKind | None, str | None, str]:
    enough = 1 - _MAX_BAD
    if sum(map(_is_iso_8601, texts)) >= enough * len(texts):
        return FieldKind.TIMESTAMP, None, ""
    if all(text.startswith(IMAGE_BASE64) for text in texts):
        return FieldKind.IMAGE, None, ""
    kind, why_not, note = _category(texts, max_categories)
    if sum(map(_is_number, texts)) >= enough * len(texts):
        if why_not is None:
            return kind, None, "numbers sent as text, so read as categories"
        why_not = "numbers sent as text; send JSON numbers (without quotes) for kind: numeric"
    elif why_not is not None and sum(_DATE_LIKE.fullmatch(text) is not None for text in texts) >= enough * len(texts):
        why_not = "a date in a form that is not read; allowed: ISO 8601, such as 2024-05-01T12:00:00Z"
    return kind, why_not, note


def _category(values: Sequence[Any], max_categories: int) -> tuple[FieldKind | None, str | None, str]:
    kind, n_distinct = FieldKind.CATEGORICAL, _n_distinct(values)
    if n_distinct == 1 and len(values) > 1:
        return kind, "always the same text", ""
    if n_distinct > _FEW_CATEGORIES and n_distinct > len(values) // 2:
        return kind, f"{n_distinct:,} different texts in {len(values):,} records: ids or free text", ""
    if n_distinct > max_categories:
        return kind, f"{n_distinct:,} different texts; up to {max_categories:,} are taken as categories", ""
    return kind, None, ""


def _n_distinct(values: Sequence[Any]) -> int:
    try:
        return len(set(values))
    except TypeError:  # lists
        return len(values)


def _is_iso_8601(value: str) -> bool:
    if value[4:5] != "-":  # eight digits are a date too for `fromisoformat`, but more often a number
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _file(value: Any) -> bytes | None:
    try:
        return from_base64(value) if type(value) is str else None
    except Bad:
        return None


def _growth(column: _Column, partitions: Sequence[tuple[str, int]]) -> float:
    """Return the share of steps, within partitions, in which the value does not fall; 0 if there are too few to say."""
    parts: dict[tuple[str, int], list[Any]] = {}
    for partition, value in zip(partitions, column.values, strict=True):
        comparable = _moment(value)
        if comparable is not None:
            parts.setdefault(partition, []).append(comparable)
    steps = [later >= sooner for values in parts.values() for sooner, later in pairwise(values)]
    if len(steps) < _MIN_FOR_GROWTH - 1 or all(values[0] == values[-1] for values in parts.values()):
        return 0.0
    return float(sum(steps) / len(steps))


def _moment(value: Any) -> float | None:
    """Return a value by which times and numbers can be ordered."""
    if type(value) in (int, float):
        return float(value)
    if type(value) is str and _is_iso_8601(value):
        moment = datetime.fromisoformat(value)
        try:
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    return None


# Fields beside each other


def _with_one_time(
    found: Sequence[FoundField], columns: Sequence[_Column], partitions: Sequence[tuple[str, int]]
) -> list[FoundField]:
    """Keep the one time that is the record's own: it runs with the log, and is named like a time if any is."""
    times = [i for i, one in enumerate(found) if one.kind is FieldKind.TIMESTAMP and one.why_not is None]
    growth = {i: _growth(columns[i], partitions) for i in times}
    few = all(len(columns[i].present) < _MIN_FOR_GROWTH for i in times)
    own = [i for i in times if growth[i] >= _TIME_ORDER or few]
    own.sort(key=lambda i: _TIME_NAME.search(columns[i].path[-1]) is None)
    kept = list(found)
    for i in times:
        if i not in own:
            why_not = "a time that does not run with the log, such as a date of birth"
        elif i != own[0]:
            why_not = f"another time beside {found[own[0]].name}"
        else:
            kept[i] = replace(kept[i], note="the record's own time; models do not learn from it")
            continue
        kept[i] = replace(kept[i], why_not=f"{why_not}; models do not learn from times")
    return kept


def _with_one_picture(found: Sequence[FoundField]) -> list[FoundField]:
    kept, has_picture = [], False
    for one in found:
        if one.kind is FieldKind.IMAGE and one.why_not is None:
            if has_picture:
                one = replace(one, why_not="another field is the picture")
            elif not one.is_required:
                one = replace(one, why_not="a picture is required, and some records have none", kind=None)
            has_picture = has_picture or one.why_not is None
        kept.append(one)
    return kept


def _fitting(found: Sequence[FoundField], columns: Sequence[_Column]) -> list[FoundField]:
    """Leave out what most records do not fit, until 99 % of them fit the rest."""
    kept = list(found)
    n = len(columns[0].values) if columns else 0
    odd = {i: _misfits(columns[i], one.kind) for i, one in enumerate(found) if one.why_not is None and one.kind}
    while odd and len(set().union(*odd.values())) > _MAX_BAD * n:
        worst = max(odd, key=lambda i: len(odd[i]))
        n_odd = len(odd.pop(worst))
        kept[worst] = replace(kept[worst], why_not=f"{n_odd:,} of {n:,} records hold something else there")
    return kept


_FITTING: Mapping[FieldKind, tuple[type, ...]] = {
    FieldKind.NUMERIC: (int, float),
    FieldKind.CATEGORICAL: (str, bool, int, float),
    FieldKind.BOOLEAN: (bool, int, float),
    FieldKind.TIMESTAMP: (str, int, float),
    FieldKind.IMAGE: (str,),
}


def _misfits(column: _Column, kind: FieldKind) -> set[int]:
    """Return the rows whose value is bad for this kind."""
    return {row for row, value in enumerate(column.values) if value is not None and not _fits(value, kind)}


def _fits(value: Any, kind: FieldKind) -> bool:
    if type(value) not in _FITTING[kind]:
        return False
    if kind is FieldKind.BOOLEAN:
        return value in (0, 1)
    if kind is FieldKind.TIMESTAMP:
        return _is_iso_8601(value) if type(value) is str else abs(value) < _EPOCH_FINER[0]
    return True


# What was seen, for people


def _seen(column: _Column, kind: FieldKind | None) -> str:
    counts = f"{len(column.present):,} of {len(column.values):,}"
    numbers = [value for value in column.present if type(value) in (int, float)]
    if not column.present:
        detail = ""
    elif kind is FieldKind.NUMERIC and numbers:
        low, high = min(numbers), max(numbers)
        middle = f"{_number_text(low)} … {_number_text(high)}, median {_number_text(median(numbers))}"
        detail = f"always {_number_text(low)}" if low == high else middle
    elif kind is FieldKind.BOOLEAN:
        n_true = sum(value == 1 for value in column.present)
        detail = f"true in {n_true / len(column.present):.1%}".replace("%", " %")
    elif kind is FieldKind.TIMESTAMP:
        detail = f"{_cut(column.present[0])} … {_cut(column.present[-1])}"
    elif kind is FieldKind.IMAGE:
        detail = "pictures in base64"
    elif kind is FieldKind.CATEGORICAL:
        detail = _values([value for value in column.present if _fits(value, kind)])
    else:
        detail = ""
    return f"{counts}, {detail}" if detail else counts


def _values(present: Sequence[Any]) -> str:
    counts = Counter(value if type(value) is str else orjson.dumps(value, default=str).decode() for value in present)
    most = [_cut(value) for value, _ in counts.most_common(5)]
    more = ", …" if len(counts) > len(most) else ""
    return f"{len(counts):,} value{'' if len(counts) == 1 else 's'}: {', '.join(most)}{more}"


def _cut(value: Any) -> str:
    text = value if type(value) is str else orjson.dumps(value, default=str).decode()
    shown = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return repr(shown) if not shown.strip() else shown if len(shown) <= 24 else shown[:23] + "…"


def _number_text(value: float) -> str:
    """Return a number as people write it.

    Examples
    --------
    >>> _number_text(9140), _number_text(0.123456), _number_text(1.5e-7), _number_text(2.0)
    ('9,140', '0.1235', '1.5e-07', '2')
    """
    if abs(value) >= 1e15 or (value != 0 and abs(value) < 1e-4):
        return f"{value:.3g}"
    if float(value).is_integer():
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
