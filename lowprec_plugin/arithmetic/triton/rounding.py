"""Codes to floats and floats to codes on the device, one block of a tensor per row of a tile.

The laws are :mod:`..reference.rounding`'s, which states them in float64. Here they are evaluated in float32, and
exactly: multiplying by a power of two that float32 holds, splitting a float into an integer and the rest, and adding
the constant ``1.5 * 2**23``, which rounds to an integer, ties to even, and leaves it in the low bits of the sum. No
step rounds but the one that the law asks for, so nothing depends on how a device converts floats to integers.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

import triton
import triton.language as tl

from lowprec_plugin import formats
from lowprec_plugin.formats import FixedPointFormat

MIN_EXPONENT = tl.constexpr(formats.MIN_EXPONENT)
#: The bits of infinity; those of a NaN, without its sign, are above.
INFINITE = tl.constexpr(0x7F800000)
FLOAT32_MAX = tl.constexpr(3.4028234663852886e38)
#: The bits of 2**126: below, everything is within the range of every dynamic format.
HUGE = tl.constexpr(0x7E800000)
#: Added to a float of at most 2**22, this makes it an integer, and ``bits(sum) - MAGIC_BITS`` is that integer.
MAGIC = tl.constexpr(12582912.0)
MAGIC_BITS = tl.constexpr(0x4B400000)
#: Likewise of a double of at most 2**51.
DOUBLE_MAGIC = tl.constexpr(6755399441055744.0)


@dataclass(frozen=True)
class CompiledFormat:
    """What kernels are compiled for of a :class:`~lowprec_plugin.formats.FixedPointFormat`, its radix point not.

    Every number that a kernel needs is a field, since Triton finds kernels that it has compiled before by the fields.
    """

    word_length: int
    dynamic: bool
    squared: bool
    min_code: int
    max_code: int
    max_exponent: int


@cache
def compiled(format: FixedPointFormat) -> CompiledFormat:
    """What kernels are compiled for of ``format``."""
    return CompiledFormat(**{field.name: getattr(format, field.name) for field in fields(CompiledFormat)})


def radix(format: FixedPointFormat) -> int:
    """What kernels get of ``format`` at run time: the exponent of a static one."""
    return 0 if format.dynamic else format.static_exponent


@triton.jit
def power_of_two(exponent):
    """``2**exponent`` in float32, for int32 exponents of normal numbers."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def bfloat16_bits(x):
    """The bits of float32 ``x`` rounded to bfloat16, ties to even, int16; a NaN has to be the usual one."""
    word = x.to(tl.int32, bitcast=True)
    return ((word + 0x7FFF + ((word >> 16) & 1)) >> 16).to(tl.int16)


@triton.jit
def largest_bits(x):
    """The bits of every block's largest magnitude, int32: above ``INFINITE`` if the block has a NaN."""
    return tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1, keep_dims=True)


@triton.jit
def load_codes(codes, low, at, mask, FORMAT: tl.constexpr):
    """The codes at the offsets ``at``, int32; 0 where ``mask`` does not hold."""
    code = tl.load(codes + at, mask=mask, other=0).to(tl.int32)
    if FORMAT.word_length > 16:
        code = ((code << 8) | tl.load(low + at, mask=mask, other=0).to(tl.int32)) >> (24 - FORMAT.word_length)
    return code


@triton.jit
def store_codes(codes, low, at, mask, code, FORMAT: tl.constexpr):
    """Write int32 codes to their planes."""
    if FORMAT.word_length > 16:
        wide = code << (24 - FORMAT.word_length)
        tl.store(codes + at, (wide >> 8).to(tl.int16), mask=mask)
        tl.store(low + at, (wide & 0xFF).to(tl.uint8), mask=mask)
    elif FORMAT.word_length > 8:
        tl.store(codes + at, code.to(tl.int16), mask=mask)
    else:
        tl.store(codes + at, code.to(tl.int8), mask=mask)


@triton.jit
def block_exponent(largest, FORMAT: tl.constexpr):
    """The smallest exponent that holds a magnitude, given as a float's bits, within the format's bounds."""
    # A code keeps word_length - 2 bits of the mantissa; a magnitude above the largest code needs the next exponent.
    full: tl.constexpr = ((1 << (FORMAT.word_length - 2)) - 1) << (25 - FORMAT.word_length)
    carry = ((largest & 0x7FFFFF) > full).to(tl.int32)
    exponent = (largest >> 23) + carry - (127 + FORMAT.word_length - 2)
    return tl.minimum(tl.maximum(exponent, MIN_EXPONENT), FORMAT.max_exponent)


@triton.jit
def round_to_code(x, scale, bits, FORMAT: tl.constexpr, STOCHASTIC: tl.constexpr):
    """``rint(x * scale)``, or ``(rint(x * scale * 2**16) + bits) >> 16``, of ``x * scale`` within the codes' range.

    ``scale`` is a power of two, so that a product is exact, be it added to something in the same step or not.
    """
    if FORMAT.word_length <= 16:
        shifted = tl.fma(x, scale, MAGIC)
        whole = shifted - MAGIC
        code = shifted.to(tl.int32, bitcast=True) - MAGIC_BITS
    else:  # up to 2**23, where a float has no bits behind the point
        shift = tl.where(x < 0, -8388608.0, 8388608.0)
        whole = tl.fma(x, scale, shift) - shift
        code = whole.to(tl.int32)
    if STOCHASTIC:
        # whole * 2**16 is even, so rounding the rest alone, at most half a code, settles ties as the law does.
        rest = tl.fma(tl.fma(x, scale, -whole), 65536.0, MAGIC).to(tl.int32, bitcast=True) - MAGIC_BITS
        code += (rest + bits) >> 16
    return code


@triton.jit
def round_double(x, bits, exponent, FORMAT: tl.constexpr, STOCHASTIC: tl.constexpr):
    """Float64 rounded to a static format of any width, not by way of float32, which would round it first.

    Returns:
        the numbers, float32, and which elements were out of range.
    """
    scaled = x * double_power_of_two(-exponent)
    outside = (scaled < FORMAT.min_code) | (scaled > FORMAT.max_code)
    scaled = tl.minimum(tl.maximum(scaled, FORMAT.min_code), FORMAT.max_code)
    if STOCHASTIC:
        code = tl.floor(((scaled * 65536.0 + DOUBLE_MAGIC) - DOUBLE_MAGIC + bits.to(tl.float64)) * 2.0**-16)
    else:
        code = (scaled + DOUBLE_MAGIC) - DOUBLE_MAGIC
    return (code * double_power_of_two(exponent)).to(tl.float32), outside


@triton.jit
def double_power_of_two(exponent):
    """``2**exponent`` in float64, for int32 exponents."""
    return ((exponent + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)


@triton.jit
def range_of(exponent, FORMAT: tl.constexpr):
    """The smallest and the largest number of a static format, or of a dynamic block with the largest exponent.

    With any other exponent a dynamic block holds all its numbers.
    """
    if FORMAT.dynamic:
        lowest = FORMAT.min_code * 2.0**FORMAT.max_exponent
        highest = FORMAT.max_code * 2.0**FORMAT.max_exponent
    else:
        lowest = tl.maximum(power_of_two(exponent) * FORMAT.min_code, -FLOAT32_MAX)
        highest = power_of_two(exponent) * FORMAT.max_code
    return lowest, highest


@triton.jit
def count_of(mask):
    """How many hold, per block, int32. Summed as floats: of booleans LLVM makes a bit field, and that on the stack."""
    return tl.sum(mask.to(tl.float32), axis=1, keep_dims=True).to(tl.int32)


@triton.jit
def count_saturated(x, huge, exponent, mask, FORMAT: tl.constexpr):
    """How many elements of every block are out of range; ``huge`` says whether any is at least ``HUGE``."""
    lowest, highest = range_of(exponent, FORMAT)
    outside = mask & ((x < lowest) | (x > highest))
    count = tl.zeros((x.shape[0], 1), tl.int32)
    if FORMAT.dynamic:
        if huge:
            count = count_of(outside)
    else:
        count = count_of(outside)
    return count


@triton.jit
def encode(x, largest, bits, exponent, FORMAT: tl.constexpr, STOCHASTIC: tl.constexpr):
    """Round blocks of floats to codes: :func:`lowprec_plugin.arithmetic.reference.rounding.quantize_roots`.

    Args:
        x: ``(blocks, width)``, 0 beyond a block's end. Infinities saturate.
        largest: :func:`largest_bits` of ``x``.
        bits: int32 random bits of ``x``'s shape, unused if not ``STOCHASTIC``.
        exponent: a static format's; unused for a dynamic one.

    Returns:
        the codes and every block's exponent.
    """
    lowest, highest = range_of(exponent, FORMAT)
    x = tl.clamp(x, lowest, highest)
    if FORMAT.dynamic:
        exponent = block_exponent(largest, FORMAT)
    code = round_to_code(x, power_of_two(-exponent), bits, FORMAT, STOCHASTIC)
    if FORMAT.squared:
        code = tl.where((code == 0) & (x > 0), 1, code)
    if FORMAT.dynamic:
        # Where rounding down has left room for the next smaller exponent, the codes are doubled.
        top = tl.max(tl.abs(code), axis=1, keep_dims=True)
        spare = ((top > 0) & (top <= FORMAT.max_code // 2) & (exponent > MIN_EXPONENT)).to(tl.int32)
        code = code << spare
        exponent = tl.where(top > 0, exponent - spare, MIN_EXPONENT)
    return code, exponent
