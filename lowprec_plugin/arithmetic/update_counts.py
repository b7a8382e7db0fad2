"""What one rounded update did, counted: how much of it was kept, lost or clipped."""

from __future__ import annotations

import math
from typing import NamedTuple


class UpdateCounts(NamedTuple):
    """Of one update, or of several added up with :func:`total`.

    Attributes:
        elements: numbers that were updated.
        moved: those whose computed update is not zero.
        lost: of those moved, updates smaller than half a code of the format that they are stored in afterwards:
            rounding to nearest would drop every one.
        unchanged: of those moved, that left the stored number as it was.
        saturated: numbers that were out of range, of the parameter and of its state.
        update_squares: sum of the squared updates, as computed in float32.
        error_squares: sum of the squared differences between what is stored and what was computed.
    """

    elements: int = 0
    moved: int = 0
    lost: int = 0
    unchanged: int = 0
    saturated: int = 0
    update_squares: float = 0.0
    error_squares: float = 0.0

    @property
    def lost_share(self) -> float:
        """Of the updates that are not zero."""
        return self.lost / max(1, self.moved)

    @property
    def unchanged_share(self) -> float:
        """Of the updates that are not zero."""
        return self.unchanged / max(1, self.moved)

    @property
    def saturated_share(self) -> float:
        """Of the numbers updated; state counts as well, so that it may exceed 1 where all of it saturates."""
        return self.saturated / max(1, self.elements)

    @property
    def noise_to_update(self) -> float:
        """Root mean square of the rounding error over that of the update; 0 where nothing moved."""
        return math.sqrt(self.error_squares / self.update_squares) if self.update_squares > 0 else 0.0


def total(counts: list[UpdateCounts]) -> UpdateCounts:
    """Their sum."""
    return UpdateCounts(*(sum(column) for column in zip(*counts, strict=True))) if counts else UpdateCounts()
