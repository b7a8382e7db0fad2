"""Gradients in codes on the device: one launch adds floats to one, or sums its squares."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowprec_plugin import formats
from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.random_bits import Draw
from lowprec_plugin.arithmetic.triton.random import ALONE, random_bits
from lowprec_plugin.arithmetic.triton.rounding import (
    INFINITE,
    compiled,
    encode,
    largest_bits,
    load_codes,
    power_of_two,
    store_codes,
)
from lowprec_plugin.arithmetic.triton.tiles import locate, signed, tiling_of
from lowprec_plugin.formats import FixedPointFormat, rows_of

NOT_FINITE = tl.constexpr(formats.NOT_FINITE)
#: As many as conversions have.
_WARPS = 4


@triton.jit(do_not_specialize=["rows", "row_length", "first_row", "key"])
def gather_kernel(
    grad,
    codes,
    low,
    exponents,
    factor,
    rows: tl.int64,
    row_length: tl.int64,
    first_row: tl.int64,
    key: tl.int64,
    FORMAT: tl.constexpr,
    TILING: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """Add ``grad``, float32, float16 or the bits of bfloat16 as int16; without ``factor`` the codes are not read."""
    place = locate(tl.program_id(0), rows.to(tl.int64), row_length.to(tl.int64), first_row.to(tl.int64), TILING)
    at, mask, block, inside, counter = place
    value = tl.load(grad + at, mask=mask, other=0)
    if grad.dtype.element_ty == tl.int16:
        value = (value.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    value = value.to(tl.float32)
    if factor is not None:
        exponent = tl.load(exponents + block, mask=inside, other=0).to(tl.int32)
        before = load_codes(codes, low, at, mask, FORMAT).to(tl.float32) * power_of_two(exponent)
        value = before * tl.load(factor) + value
        if not TILING.flat:
            value = tl.where(mask, value, 0.0)  # beyond the end of a row that is marked
    drawn = 0
    if STOCHASTIC:
        drawn = random_bits(counter, key.to(tl.int64), ALONE, TILING.width, TILING.wide)
    finite = largest_bits(value) < INFINITE
    value = tl.where(finite, value, 0.0)
    code, chosen = encode(value, largest_bits(value), drawn, 0, FORMAT, STOCHASTIC)
    store_codes(codes, low, at, mask, code, FORMAT)
    tl.store(exponents + block, tl.where(finite, chosen, NOT_FINITE).to(tl.int8), mask=inside)


@triton.jit(do_not_specialize=["rows", "row_length"])
def squares_kernel(
    out,
    codes,
    low,
    exponents,
    rows: tl.int64,
    row_length: tl.int64,
    FORMAT: tl.constexpr,
    TILING: tl.constexpr,
):
    """Write the sum of the squares of every block, float64: of its codes it is exact."""
    at, mask, block, inside, _ = locate(tl.program_id(0), rows.to(tl.int64), row_length.to(tl.int64), 0, TILING)
    exponent = tl.load(exponents + block, mask=inside, other=0).to(tl.int32)
    code = load_codes(codes, low, at, mask, FORMAT).to(tl.int64)
    size = power_of_two(exponent).to(tl.float64)
    sums = tl.sum(code * code, axis=1, keep_dims=True).to(tl.float64)
    tl.store(out + block, sums * (size * size), mask=inside)


def gather(grad: Tensor, blocks: Blocks, format: FixedPointFormat, factor: Tensor | None, draw: Draw) -> None:
    """Add ``grad`` to a gradient in codes; see :func:`lowprec_plugin.arithmetic.ops.gather_`."""
    tiling, programs = tiling_of(grad.shape, format.block_size, draw.first_row, _WARPS)
    with torch.accelerator.device_index(grad.device.index):
        gather_kernel[(programs,)](
            grad.view(torch.int16) if grad.dtype == torch.bfloat16 else grad,
            *blocks,
            factor,
            *rows_of(grad.shape),
            draw.first_row,
            signed(draw.key),
            FORMAT=compiled(format),
            TILING=tiling,
            STOCHASTIC=draw.stochastic,
            **tiling.options(),
        )


def squares(blocks: Blocks, format: FixedPointFormat) -> Tensor:
    """The sum of the squares of what is stored; see :func:`lowprec_plugin.arithmetic.ops.squares`."""
    assert blocks.exponents is not None
    tiling, programs = tiling_of(blocks.codes.shape, format.block_size, 0, _WARPS)
    sums = torch.empty(blocks.exponents.shape, dtype=torch.float64, device=blocks.codes.device)
    with torch.accelerator.device_index(blocks.codes.device.index):
        squares_kernel[(programs,)](
            sums,
            *blocks,
            *rows_of(blocks.codes.shape),
            FORMAT=compiled(format),
            TILING=tiling,
            **tiling.options(),
        )
    return sums.sum()
