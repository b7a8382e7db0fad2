"""The frontier against its definition."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lowprec_plugin.tune.frontier import frontier

COORDINATE = st.one_of(st.integers(0, 5).map(float), st.floats(0, 1), st.just(float("inf")))


@given(st.lists(st.tuples(COORDINATE, COORDINATE), max_size=12))
def test_exactly_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    def dominated(index: int) -> bool:
        x, y = points[index]
        return any(
            (a <= x and b <= y and (a < x or b < y)) or ((a, b) == (x, y) and other < index)
            for other, (a, b) in enumerate(points)
        )

    found = frontier(points)
    assert sorted(found) == [index for index in range(len(points)) if not dominated(index)]
    line = [points[index] for index in found]
    assert all(a < c and b > d for (a, b), (c, d) in itertools.pairwise(line))
