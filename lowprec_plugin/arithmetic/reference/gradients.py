"""Gradients in codes: the law of how they are added up, in torch.

A gradient is stored in a dynamic format. A block that holds a NaN or an infinity is marked: its codes are 0 and its
exponent is ``NOT_FINITE``, and it reads as NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from lowprec_plugin.arithmetic.blocks import Blocks, from_planes
from lowprec_plugin.arithmetic.random_bits import Draw, random_bits
from lowprec_plugin.arithmetic.reference import rounding
from lowprec_plugin.arithmetic.updates import StoredGradient
from lowprec_plugin.formats import NOT_FINITE, FixedPointFormat, rows_of


def gather(grad: Tensor, blocks: Blocks, format: FixedPointFormat, factor: Tensor | None, draw: Draw) -> None:
    """Add ``grad`` to what is stored, in float32, and round once::

    stored = round(stored * factor + grad)        or, if factor is None, round(grad)
    """
    x = grad.float()
    if factor is not None:
        x = rounding.dequantize(blocks, format) * factor + x
    assert blocks.exponents is not None
    rows, row_length = rows_of(x.shape)
    count = format.blocks_per_row(row_length)
    blocked = pad(x.reshape(rows, row_length), (0, count * format.block_size - row_length))
    finite = blocked.isfinite().reshape(rows, count, format.block_size).all(-1)
    kept = finite.repeat_interleave(format.block_size, 1)[:, :row_length].reshape(x.shape)
    bits = random_bits(draw.key, rows, row_length, draw.first_row, x.device) if draw.stochastic else None
    rounded, _ = rounding.quantize(torch.where(kept, x, 0.0), format, bits)
    blocks.copy_(rounded)
    blocks.exponents.masked_fill_(~finite, NOT_FINITE)


def squares(blocks: Blocks, format: FixedPointFormat) -> Tensor:
    """The sum of the squares of what is stored: float64 of one element; NaN if a block is marked."""
    assert blocks.exponents is not None
    rows, row_length = rows_of(blocks.codes.shape)
    count = format.blocks_per_row(row_length)
    code = from_planes(blocks, format).long().square().reshape(rows, row_length)
    sums = pad(code, (0, count * format.block_size - row_length)).reshape(rows, count, format.block_size).sum(-1)
    return (sums.double() * rounding.exponent_size(blocks.exponents).square()).sum()


def as_floats(gradient: Tensor | StoredGradient) -> Tensor:
    """A gradient as an update reads it, float32."""
    if isinstance(gradient, Tensor):
        return gradient.float()
    value = rounding.dequantize(gradient.blocks, gradient.format)
    return value if gradient.factor is None else value * gradient.factor
