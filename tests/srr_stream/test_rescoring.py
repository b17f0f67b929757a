"""Verdicts scored again: what cannot be compared is told apart from what differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from consumers.decoding import JsonDecoder
from consumers.records import Field, RecordSchema, StoredRecord
from models.detector import Scores
from srr_stream.errors import ModelRefused
from srr_stream.ledger import Entry, Fate, Output
from srr_stream.ledger.reader import Judgements
from srr_stream.ledger.rescoring import Rescored, Rescorer

PLACE = ("events", 0)


class Doubling:
    """A model that is quick to see through: the score is twice the field, times its version."""

    def __init__(self, version: int) -> None:
        self.version = version

    def score(self, columns: dict[str, Any]) -> Scores:
        score = 2.0 * columns["x"] * self.version
        return Scores(score, np.exp(-score), score, score > 4.0)


class Shelf:
    """Loads models, and counts it."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def load(self, version: int) -> Any:
        self.loaded.append(version)
        if version == 13:
            raise ModelRefused("altered", reason="hash")
        return Doubling(version)


def verdicts(versions: Sequence[int], **changes: Any) -> tuple[Output, Judgements]:
    """Return one verdict for each of the records 0, 1, … whose field is their offset, by these versions."""
    score = np.array([2.0 * offset * version for offset, version in enumerate(versions)])
    entries = [
        Entry(*PLACE, offset, to_partition=0, to_offset=offset, version=version, is_flagged=bool(score[offset] > 4.0))
        for offset, version in enumerate(versions)
    ]
    if changes:
        entries[1] = Entry(**{name: changes.get(name, getattr(entries[1], name)) for name in Entry.__slots__})
    return Output.of("scores", entries), Judgements(score, np.exp(-score), score.copy())


def rescore(
    output: Output, said: Judgements, records: Sequence[StoredRecord] | None = None, shelf: Shelf | None = None
) -> Rescored:
    n = len(output.offset)
    log = records or [StoredRecord(*PLACE, i, 0, None, b'{"x": %d}' % i) for i in range(n)]

    def read(place: Any) -> Iterator[Sequence[StoredRecord]]:
        yield log[:2]
        yield log[2:]

    shelf = shelf or Shelf()
    rescorer = Rescorer(output, said, JsonDecoder(RecordSchema((Field("x"),))), versions=range(1, 20), load=shelf.load)
    return rescorer.check(read)


def test_equal_verdicts_of_several_versions_are_equal() -> None:
    result = rescore(*verdicts([1, 1, 2, 2, 1]))
    assert (result.n_equal, result.n_different, result.n_unverifiable) == (5, 0, {})


@pytest.mark.parametrize("column", [0, 1, 2])
def test_the_last_bit_of_every_number_counts(column: int) -> None:
    output, said = verdicts([1, 1, 1])
    said[column][2] = np.nextafter(said[column][2], 9.0)
    result = rescore(output, said)
    assert (result.n_equal, result.n_different) == (2, 1)
    assert f"{Judgements._fields[column]} is " in result.examples[0].detail
    assert result.examples[0].offset == 2


def test_a_flag_that_its_model_does_not_set_is_found() -> None:
    result = rescore(*verdicts([1, 1, 1], is_flagged=True))
    assert "flagged is True, not False" in result.examples[0].detail


def test_what_is_near_a_record_marked_normal_is_accepted_where_its_model_flags_it() -> None:
    assert rescore(*verdicts([1, 3, 1], is_flagged=False, mark=5)).n_equal == 3


def test_what_is_near_a_record_marked_normal_and_not_flagged_by_its_model_differs() -> None:
    result = rescore(*verdicts([1, 1, 1], is_flagged=False, mark=5))
    assert result.n_different == 1
    assert "flagged is True, not False" in result.examples[0].detail


def test_a_version_that_is_refused_or_gone_is_unverifiable_with_the_reason() -> None:
    result = rescore(*verdicts([1, 13, 99]))
    assert result.n_equal == 1
    assert result.n_unverifiable == {
        "version 13 is refused: altered": 1,
        "version 99 is not in the registry": 1,
    }


def test_a_record_that_is_no_longer_in_the_log_is_unverifiable() -> None:
    result = rescore(*verdicts([1, 1, 1]), [StoredRecord(*PLACE, 2, 0, None, b'{"x": 2}')])
    assert (result.n_equal, result.n_unverifiable) == (1, {"the record is no longer in the log": 2})


def test_a_record_that_these_settings_refuse_differs() -> None:
    records = [StoredRecord(*PLACE, 0, 0, None, b'{"x": 0}'), StoredRecord(*PLACE, 1, 0, None, b"no JSON")]
    result = rescore(*verdicts([1, 1]), records)
    assert (result.n_equal, result.n_different) == (1, 1)
    assert "these settings refuse it: not_json" in result.examples[0].detail


def test_a_verdict_that_nobody_gets_is_not_compared() -> None:
    assert rescore(*verdicts([1, 1, 1], is_visible=False, fate=Fate.ABORTED)).n == 2


def test_few_models_are_kept_in_memory() -> None:
    shelf = Shelf()
    result = rescore(*verdicts([1, 2, 3, 4, 5, 6]), shelf=shelf)
    assert result.n_equal == 6
    assert shelf.loaded == [1, 2, 3, 4, 5, 6]
