"""One step of an optimizer over many parameters: what a backend is given, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.formulas import Algorithm, Hyper
from lowprec_plugin.arithmetic.update_counts import UpdateCounts
from lowprec_plugin.formats import FixedPointFormat


class Stored(NamedTuple):
    """One tensor of an update: its planes and its format."""

    blocks: Blocks
    format: FixedPointFormat


class StoredGradient(NamedTuple):
    """A gradient in codes: what they stand for, times ``factor``.

    Attributes:
        factor: float32 of one element on the codes' device, which is read when the update is; ``None``: 1.
    """

    blocks: Blocks
    format: FixedPointFormat
    factor: Tensor | None


class Update(NamedTuple):
    """A step, of which :func:`.ops.update_` says more.

    Attributes:
        algorithm: the formula.
        grads, stores, keys, hypers, first_rows: per parameter.
        stochastic: whether to round so, or to nearest.
        counting: whether to count what it does.
    """

    algorithm: Algorithm
    grads: Sequence[Tensor | StoredGradient]
    stores: Sequence[Sequence[Stored]]
    keys: Sequence[int]
    hypers: Sequence[Hyper]
    first_rows: Sequence[int]
    stochastic: bool = True
    counting: bool = False


class Updated(NamedTuple):
    """What came of a step.

    Attributes:
        saturated: numbers that were out of range, of parameters and state.
        refused: the index of the first parameter in which a NaN came up, or ``None``.
        counts: one per parameter, if they were wanted; else empty.
    """

    saturated: int
    refused: int | None
    counts: list[UpdateCounts]
