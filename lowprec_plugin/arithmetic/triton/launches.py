"""Many tensors in one launch: a table on the device describes each in one row of 64-bit words.

The first column is the first program that works for the tensor; a program finds its row by bisecting that column.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
from __future__ import annotations

import torch
import triton
import triton.language as tl

from lowprec_plugin.arithmetic.triton.rounding import bfloat16_bits

FLOAT32, BFLOAT16, FLOAT16 = (tl.constexpr(number) for number in range(3))
#: What kernels call a type of floats.
FLOAT_TYPES = {torch.float32: FLOAT32.value, torch.bfloat16: BFLOAT16.value, torch.float16: FLOAT16.value}


@triton.jit
def row_of(program, table, count, COLUMNS: tl.constexpr):
    """The row, of ``count``, that ``program`` works for: the last one whose first program is not after it."""
    lower, upper = count * 0, count
    while upper - lower > 1:
        middle = (lower + upper) // 2
        begun = tl.load(table + middle * COLUMNS) <= program
        lower = tl.where(begun, middle, lower)
        upper = tl.where(begun, upper, middle)
    return table + lower * COLUMNS


@triton.jit
def pointer(word, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """An address as a pointer, to a 128-bit boundary if ``ALIGNED``: only then are loads from it 128 bits wide."""
    typed = word.to(tl.pointer_type(TYPE))
    if ALIGNED:
        typed = tl.multiple_of(typed, 16)
    return typed


@triton.jit
def load_floats(address, at, mask, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """A tile of floats of any type, as float32; 0 where ``mask`` does not hold."""
    if TYPE == BFLOAT16:
        word = tl.load(pointer(address, tl.int16, ALIGNED) + at, mask=mask, other=0)
        x = (word.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif TYPE == FLOAT16:
        x = tl.load(pointer(address, tl.float16, ALIGNED) + at, mask=mask, other=0.0).to(tl.float32)
    else:
        x = tl.load(pointer(address, tl.float32, ALIGNED) + at, mask=mask, other=0.0)
    return x


@triton.jit
def store_floats(address, at, mask, x, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Write a tile of float32 as float32 or bfloat16."""
    if TYPE == BFLOAT16:
        tl.store(pointer(address, tl.int16, ALIGNED) + at, bfloat16_bits(x), mask=mask)
    else:
        tl.static_assert(TYPE == FLOAT32)
        tl.store(pointer(address, tl.float32, ALIGNED) + at, x, mask=mask)
