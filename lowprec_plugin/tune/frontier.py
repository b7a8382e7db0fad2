"""Which points of cost and loss no other beats."""

from __future__ import annotations

from collections.abc import Sequence


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that are not dominated, both coordinates being better where smaller, by rising first one.

    A point is dominated if another is at most as large in both coordinates and smaller in one; of equal points the
    first is kept.
    """
    best: list[int] = []
    for index in sorted(range(len(points)), key=lambda each: (*points[each], each)):
        if not best or points[index][1] < points[best[-1]][1]:
            best.append(index)
    return best
