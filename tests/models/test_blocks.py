"""Blocks of rows: of one size, or a last one of fewer."""

from __future__ import annotations

import numpy as np
import pytest

from models.blocks import CHUNK_ROWS, by_blocks, by_chunks


@pytest.mark.parametrize(
    ("n", "least_rows", "expected"),
    [
        (0, None, [8]),
        (3, None, [8]),
        (9, None, [8, 8]),
        (0, 2, [2]),
        (1, 2, [2]),
        (3, 2, [4]),
        (5, 2, [8]),
        (7, 3, [8]),
        (8, 2, [8]),
        (9, 2, [8, 2]),
        (20, 2, [8, 8, 4]),
    ],
)
def test_the_last_block_has_as_few_rows_as_hold_what_is_left(
    n: int, least_rows: int | None, expected: list[int]
) -> None:
    sizes = []

    def double(block: np.ndarray) -> np.ndarray:
        sizes.append(len(block))
        return 2 * block

    X = np.arange(2.0 * n).reshape(n, 2)
    np.testing.assert_array_equal(by_blocks(double, X, n_rows=8, least_rows=least_rows), 2 * X)
    assert sizes == expected


@pytest.mark.parametrize("n", [0, 1, CHUNK_ROWS, CHUNK_ROWS + 1, 3 * CHUNK_ROWS])
def test_chunks_are_as_large_as_they_may_be_and_every_row_is_in_one(n: int) -> None:
    sizes = []

    def double(chunk: np.ndarray) -> np.ndarray:
        sizes.append(len(chunk))
        return 2 * chunk

    X = np.arange(2.0 * n).reshape(n, 2)
    np.testing.assert_array_equal(by_chunks(double, X), 2 * X)
    assert sum(sizes) == n
    assert all(size == CHUNK_ROWS for size in sizes[:-1])
    assert max(sizes) <= CHUNK_ROWS
