"""What a counted share proves: Wilson's interval."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from srr_stream.shares import greatest_share, least_share, share


@given(n=st.integers(1, 5000), data=st.data())
def test_the_interval_is_scipys(n: int, data: st.DataObject) -> None:
    n_hits = data.draw(st.integers(0, n))
    expected = binomtest(n_hits, n).proportion_ci(0.9973002039367398, method="wilson")  # three deviations to each side
    assert least_share(n_hits, n, z=3.0) == pytest.approx(expected.low, abs=1e-9)
    assert greatest_share(n_hits, n, z=3.0) == pytest.approx(expected.high, abs=1e-9)


def test_nothing_counted_proves_nothing() -> None:
    assert (share(0, 0), least_share(0, 0, z=2.0), greatest_share(0, 0, z=2.0)) == (0.0, 0.0, 1.0)
