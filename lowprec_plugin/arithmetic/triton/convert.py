"""Floats to blocks and back, on the device: one launch per tensor, one program per tile."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.random_bits import Draw
from lowprec_plugin.arithmetic.triton.random import ALONE, random_bits
from lowprec_plugin.arithmetic.triton.rounding import (
    FLOAT32_MAX,
    HUGE,
    bfloat16_bits,
    compiled,
    count_of,
    count_saturated,
    encode,
    largest_bits,
    load_codes,
    power_of_two,
    radix,
    round_double,
    store_codes,
)
from lowprec_plugin.arithmetic.triton.tiles import locate, signed, tiling_of
from lowprec_plugin.formats import FixedPointFormat, rows_of

#: A program has enough to do that starting programs does not cost more than running them.
_WARPS = 4
_RUNTIME = ["rows", "row_length", "first_row", "key", "exponent"]  # numbers that no kernel is recompiled for


@triton.jit
def drawn_bits(bits, at, mask, counter, key, TILING: tl.constexpr, STOCHASTIC: tl.constexpr):
    """Random bits for every element of a tile: those at ``bits``, or the key's where that is ``None``."""
    drawn = 0
    if STOCHASTIC:
        if bits is None:
            drawn = random_bits(counter, key.to(tl.int64), ALONE, TILING.width, TILING.wide)
        else:
            drawn = tl.load(bits + at, mask=mask, other=0)
    return drawn


@triton.jit(do_not_specialize=_RUNTIME)
def quantize_kernel(
    x,
    codes,
    low,
    exponents,
    bits,
    saturated,
    rows: tl.int64,
    row_length: tl.int64,
    first_row: tl.int64,
    key: tl.int64,
    exponent: tl.int32,
    FORMAT: tl.constexpr,
    TILING: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """Round float32 ``x``; planes that the format does not have, and ``bits`` that the key makes, are ``None``."""
    # The interpreter does not heed the types that arguments are declared with: hence the casts.
    place = locate(tl.program_id(0), rows.to(tl.int64), row_length.to(tl.int64), first_row.to(tl.int64), TILING)
    at, mask, block, inside, counter = place
    value = tl.load(x + at, mask=mask, other=0.0)
    if FORMAT.squared:
        value = tl.sqrt_rn(value)
    drawn = drawn_bits(bits, at, mask, counter, key, TILING, STOCHASTIC)
    largest = largest_bits(value)
    code, chosen = encode(value, largest, drawn, exponent, FORMAT, STOCHASTIC)
    store_codes(codes, low, at, mask, code, FORMAT)
    if FORMAT.dynamic:
        tl.store(exponents + block, chosen.to(tl.int8), mask=inside)
    count = count_saturated(value, tl.max(largest) >= HUGE, exponent, mask, FORMAT)
    tl.atomic_add(saturated + tl.zeros_like(count), count.to(tl.int64), mask=count > 0, sem="relaxed")


@triton.jit(do_not_specialize=_RUNTIME)
def dequantize_kernel(
    out,
    codes,
    low,
    exponents,
    rows: tl.int64,
    row_length: tl.int64,
    exponent: tl.int32,
    FORMAT: tl.constexpr,
    TILING: tl.constexpr,
):
    """Write the stored numbers to ``out``: float32, or int16 for the bits of bfloat16."""
    at, mask, block, inside, _ = locate(tl.program_id(0), rows.to(tl.int64), row_length.to(tl.int64), 0, TILING)
    if FORMAT.dynamic:
        exponent = tl.load(exponents + block, mask=inside, other=0).to(tl.int32)
    value = load_codes(codes, low, at, mask, FORMAT).to(tl.float32) * power_of_two(exponent)
    if FORMAT.squared:
        value = tl.minimum(value * value, FLOAT32_MAX)
    if out.dtype.element_ty == tl.int16:
        tl.store(out + at, bfloat16_bits(value), mask=mask)
    else:
        tl.store(out + at, value, mask=mask)


@triton.jit(do_not_specialize=_RUNTIME)
def round_kernel(
    x,
    out,
    bits,
    saturated,
    rows: tl.int64,
    row_length: tl.int64,
    first_row: tl.int64,
    key: tl.int64,
    exponent: tl.int32,
    FORMAT: tl.constexpr,
    TILING: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """Write to ``out`` what ``x`` would be read back as once stored; what is not finite passes through.

    ``x`` is float32, or float64 if the format is static.
    """
    place = locate(tl.program_id(0), rows.to(tl.int64), row_length.to(tl.int64), first_row.to(tl.int64), TILING)
    at, mask, _, _, counter = place
    given = tl.load(x + at, mask=mask, other=0.0)
    finite = tl.abs(given) < float("inf")
    value = tl.where(finite, given, 0.0)
    drawn = drawn_bits(bits, at, mask, counter, key, TILING, STOCHASTIC)
    if x.dtype.element_ty == tl.float64:
        result, outside = round_double(value, drawn, exponent, FORMAT, STOCHASTIC)
        count = count_of(outside)
    else:
        largest = largest_bits(value)
        code, chosen = encode(value, largest, drawn, exponent, FORMAT, STOCHASTIC)
        result = code.to(tl.float32) * power_of_two(chosen)
        count = count_saturated(value, tl.max(largest) >= HUGE, exponent, mask, FORMAT)
    tl.store(out + at, tl.where(finite, result, given.to(tl.float32)), mask=mask)
    tl.atomic_add(saturated + tl.zeros_like(count), count.to(tl.int64), mask=count > 0, sem="relaxed")


def quantize(x: Tensor, format: FixedPointFormat, out: Blocks, draw: Draw) -> int:
    """Round ``x`` into ``out``; see :func:`lowprec_plugin.arithmetic.ops.quantize`. Returns the saturated elements."""
    return int(_launch(quantize_kernel, x, format, out, draw))


def dequantize(blocks: Blocks, format: FixedPointFormat, out: Tensor) -> None:
    """Write the stored numbers to ``out`` (float32 or bfloat16, contiguous)."""
    tiling, programs = tiling_of(out.shape, format.block_size, 0, _WARPS)
    with torch.accelerator.device_index(out.device.index):
        dequantize_kernel[(programs,)](
            out.view(torch.int16) if out.dtype == torch.bfloat16 else out,
            *blocks,
            *rows_of(out.shape),
            radix(format),
            FORMAT=compiled(format),
            TILING=tiling,
            **tiling.options(),
        )


def rounded(x: Tensor, format: FixedPointFormat, out: Tensor, draw: Draw) -> Tensor:
    """Write to float32 ``out`` the numbers of ``format`` that ``x`` is rounded to. Returns the saturated ones."""
    return _launch(round_kernel, x, format, [out], draw)


def _launch(kernel: Any, x: Tensor, format: FixedPointFormat, to: Iterable[Tensor | None], draw: Draw) -> Tensor:
    """Round ``x`` by ``kernel``, which writes ``to`` these. Returns how many elements saturated, on the device."""
    tiling, programs = tiling_of(x.shape, format.block_size, draw.first_row, _WARPS)
    saturated = torch.zeros(1, dtype=torch.int64, device=x.device)
    with torch.accelerator.device_index(x.device.index):
        kernel[(programs,)](
            x,
            *to,
            draw.bits,
            saturated,
            *rows_of(x.shape),
            draw.first_row,
            signed(draw.key),
            radix(format),
            FORMAT=compiled(format),
            TILING=tiling,
            STOCHASTIC=draw.stochastic,
            **tiling.options(),
        )
    return saturated
