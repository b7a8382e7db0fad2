"""Sums of products without rounding.

Two numbers of formats with word lengths ``a`` and ``b`` and ``f`` and ``g`` bits behind the point are integers of at
most ``2**(a - 1)`` and ``2**(b - 1)`` in magnitude, times ``2**-f`` and ``2**-g``. A sum of ``d`` of their products is
an integer of at most ``d * 2**(a + b - 2)``, times ``2**-(f + g)``; so is every partial sum, in whatever order.
float64 holds every integer up to ``2**53``: while ``a + b - 2 + log2(d) <= 53`` no addition rounds, and the result is
the sum. A bias of word length ``c`` and ``h`` bits behind the point is an integer of at most ``2**(c - 1)`` times
``2**-h``: one more term, both in units of the finer of the two steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowprec_plugin.activations.emulation.sites import Site, format_of
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.tensor import FixedPointTensor

#: The integers that float64 holds without a gap.
_BITS = 53


class _InFloat64(torch.autograd.Function):
    """An operand in float64; the error that comes back is rounded from float64 at once, a weight's gradient to float32.

    Behind a float32 rounding, rounding to the format would not see the exact sum.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: Site, operand: int, is_weight: bool) -> Tensor:
        ctx.site, ctx.operand, ctx.is_weight, ctx.dtype = site, operand, is_weight, x.dtype
        return (x.dequantize() if isinstance(x, FixedPointTensor) else x).double()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, None, None, None]:
        rounded = error if ctx.is_weight else ctx.site.round_error(error, ctx.operand)
        return rounded.to(ctx.dtype), None, None, None


def in_float64(x: Tensor, site: Site, operand: int) -> Tensor:
    """``x``, whose format must be known and static, in float64.

    Raises:
        ValueError: if its numbers are not a static format's.
    """
    format = exact_format(x, site)
    is_weight = isinstance(x, (FixedPointTensor, nn.Parameter))
    inside = isinstance(x, FixedPointTensor) or torch.equal(ops.rounded(x, format), x)
    if not inside:
        raise ValueError(
            f"an operand of {site} holds numbers that are not {format}'s: something set them aside from the network's "
            "arithmetic; use accumulate='float32'"
        )
    value: Tensor = _InFloat64.apply(x, site, operand, is_weight)  # type: ignore[no-untyped-call]
    return value


def exact_format(x: Tensor, site: Site) -> FixedPointFormat:
    """The static format of an operand.

    Raises:
        ValueError: if it has none.
    """
    format = x.format if isinstance(x, FixedPointTensor) else format_of(x)
    if format is None or format.dynamic:
        raise ValueError(
            f"accumulate='exact' needs operands in static formats, and one of {site} is "
            f"{'float32' if format is None else str(format)}: give weights and activations a fraction_length, keep "
            "none in float, or use accumulate='float32'"
        )
    return format


def check_bits(operands: list[FixedPointFormat], terms: int, site: Site) -> None:
    """Refuse sums that float64 could round.

    Args:
        operands: the formats of both factors, and of a bias if there is one.
        terms: products in the longest of the operation's sums, forwards or backwards.

    Raises:
        ValueError: naming the bits.
    """
    first, second = (format.word_length for format in operands[:2])
    words = first + second
    if site.errors.format is not None:  # each gradient is a sum of errors times the other factor
        words = max(words, site.errors.format.word_length + max(first, second))
    largest = terms * 2 ** (words - 2)
    for bias in operands[2:]:  # in units of the products' step, or the products in its
        shift = operands[0].static_exponent + operands[1].static_exponent - bias.static_exponent
        largest = largest * 2 ** max(shift, 0) + 2 ** (bias.word_length - 1 + max(-shift, 0))
    bits = math.log2(largest)
    if bits > _BITS:
        raise ValueError(
            f"{site} sums {terms} products of {words - 2} bits: {bits:.1f} bits, and float64 adds exactly up to "
            f"{_BITS}. Use narrower words or accumulate='float32'"
        )
