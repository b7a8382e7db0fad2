"""What an update does, counted on the device: one row of 64-bit words per parameter, to which every program adds."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowprec_plugin.arithmetic.triton.rounding import FLOAT32_MAX, count_of, power_of_two
from lowprec_plugin.arithmetic.update_counts import UpdateCounts

# A row's columns are the fields of UpdateCounts, the last two the bits of float64.
MOVED, LOST, UNCHANGED, SATURATED, SQUARES = (tl.constexpr(column) for column in range(1, 6))


@triton.jit
def count_update(before, computed, code, exponent, mask, saturated, counts):
    """Add to the row ``counts`` what became of a tile's update: :func:`..reference.update.counted`.

    Args:
        before, computed: the parameter before, and what it came to, float32 of shape ``(blocks, width)``.
        code, exponent: what it was rounded to: the codes, and the exponents of the blocks or of all.
        mask: which elements are there and were written; of the tile's shape, or of the blocks'.
        saturated: how many numbers of every block were out of range, of the parameter and of its state.
    """
    new = tl.clamp(computed, -FLOAT32_MAX, FLOAT32_MAX).to(tl.float64)
    stored = code.to(tl.float32) * power_of_two(exponent)
    update = tl.where(mask, new - before.to(tl.float64), 0.0)
    error = tl.where(mask, stored.to(tl.float64) - new, 0.0)
    moved = update != 0
    lost = moved & (tl.abs(update) < power_of_two(exponent - 1).to(tl.float64))
    add_count(counts, tl.broadcast_to(mask, code.shape))
    add_count(counts + MOVED, moved)
    add_count(counts + LOST, lost)
    add_count(counts + UNCHANGED, moved & (stored == before))
    tl.atomic_add(counts + SATURATED, tl.sum(saturated).to(tl.int64), sem="relaxed")
    squares = (counts + SQUARES).to(tl.pointer_type(tl.float64))
    tl.atomic_add(squares, tl.sum(update * update), sem="relaxed")
    tl.atomic_add(squares + 1, tl.sum(error * error), sem="relaxed")


@triton.jit
def add_count(to, mask):
    """Add to the number at ``to`` how many hold."""
    tl.atomic_add(to, tl.sum(count_of(mask)).to(tl.int64), sem="relaxed")


def counts_of(rows: Tensor) -> list[UpdateCounts]:
    """What was counted, of rows on the CPU."""
    whole = rows[:, : SQUARES.value].tolist()
    sums = rows.view(torch.float64)[:, SQUARES.value : SQUARES.value + 2].tolist()
    return [UpdateCounts(*numbers, *squares) for numbers, squares in zip(whole, sums, strict=True)]
