"""The normative update, in torch: what every other backend must do bit for bit, and what it counts."""

from __future__ import annotations

from torch import Tensor

from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.random_bits import random_bits
from lowprec_plugin.arithmetic.reference import rounding as reference
from lowprec_plugin.arithmetic.reference.gradients import as_floats
from lowprec_plugin.arithmetic.update_counts import UpdateCounts
from lowprec_plugin.arithmetic.updates import Update, Updated
from lowprec_plugin.formats import FixedPointFormat, rows_of


def update(step: Update) -> Updated:
    """One step over many parameters; see :func:`lowprec_plugin.arithmetic.ops.update_`."""
    total, refused, counts = 0, None, []
    given = zip(step.grads, step.stores, step.keys, step.hypers, step.first_rows, strict=True)
    for index, (grad, tensors, key, hyper, first_row) in enumerate(given):
        # A squared format's own numbers are the roots, which is what the formulas work on.
        values = [reference.dequantize(blocks, format_of_roots(format)) for blocks, format in tensors]
        before, values = values[0], list(step.algorithm.apply(values[0], as_floats(grad), values[1:], hyper))
        counts.append(UpdateCounts())
        if any(bool(value.isnan().any()) for value in values):
            refused = index if refused is None else refused
            continue
        outside = 0
        for role, ((blocks, format), value) in enumerate(zip(tensors, values, strict=True)):
            bits = random_bits(key, *rows_of(value.shape), first_row, value.device, role) if step.stochastic else None
            rounded, saturated = reference.quantize_roots(value, format, bits)
            blocks.copy_(rounded)
            outside += saturated
        if step.counting:
            counts[index] = counted(before, values[0], *tensors[0])._replace(saturated=outside)
        total += outside
    return Updated(total, refused, counts if step.counting else [])


def counted(before: Tensor, computed: Tensor, blocks: Blocks, format: FixedPointFormat) -> UpdateCounts:
    """Count what became of the update from ``before`` to ``computed``, which has been written to ``blocks``.

    ::

        update = computed - before        lost:      0 < abs(update) < code / 2
        error = stored - computed         unchanged: update != 0 and stored == before

    in float64, where ``code`` is what one code stands for after the update. What overflowed float32 counts as its
    largest number. Saturation is for the caller to count.

    Args:
        before, computed: float32, of the codes' shape; no NaN.
        format: not squared.
    """
    old, new = before.double(), computed.clamp(-reference.FLOAT32_MAX, reference.FLOAT32_MAX).double()
    stored = reference.dequantize(blocks, format).double()
    update, error, half = new - old, stored - new, reference.code_size(blocks, format) / 2
    moved = update != 0
    return UpdateCounts(
        elements=old.numel(),
        moved=int(moved.sum()),
        lost=int((moved & (update.abs() < half)).sum()),
        unchanged=int((moved & (stored == old)).sum()),
        update_squares=float(update.square().sum()),
        error_squares=float(error.square().sum()),
    )


def format_of_roots(format: FixedPointFormat) -> FixedPointFormat:
    """The format of the numbers that ``format``'s codes stand for before any squaring."""
    return FixedPointFormat(format.word_length, format.fraction_length, format.block_size)
