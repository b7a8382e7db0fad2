"""The normative arithmetic, in torch: what every other backend must do bit for bit.

Written to be read, and slow. Every rounding law is evaluated exactly (float64 holds every intermediate), so that a
backend agrees with it or is wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from lowprec_plugin.arithmetic.blocks import Blocks, from_planes, to_planes
from lowprec_plugin.arithmetic.formulas import square_root
from lowprec_plugin.formats import MIN_EXPONENT, NOT_FINITE, FixedPointFormat, rows_of

FLOAT32_MAX = torch.finfo(torch.float32).max


def round_to_code(scaled: Tensor, bits: Tensor | None) -> Tensor:
    """Round ``scaled`` (float64, in units of one code) to integers.

    With ``bits`` = ``None``: to the nearest, ties to even. With 16 random bits per element: stochastically, ::

        code = floor(scaled + bits / 2**16)        bits uniform on 0 .. 65535

    where ``scaled`` is first taken to the nearest multiple of 2**-16 of a code, so that ``P(up)`` is the discarded
    fraction to within 2**-17 and without bias either way. In integers: ``(rint(scaled * 2**16) + bits) >> 16``.
    An integer never moves. (Gupta et al. 2015, section 3.1.)
    """
    if bits is None:
        return torch.round(scaled).to(torch.int64)
    return (torch.round(scaled * 65536).to(torch.int64) + bits) >> 16


def block_exponents(magnitude: Tensor, format: FixedPointFormat) -> Tensor:
    """The smallest exponent ``e`` with ``magnitude <= max_code * 2**e``, within the format's bounds.

    Args:
        magnitude: the largest absolute value of each block, float32, finite.

    Returns:
        int32 of the same shape. A block of zeros gets the lowest exponent.
    """
    mantissa, exponent = torch.frexp(magnitude)  # magnitude = mantissa * 2**exponent, mantissa in [0.5, 1)
    carry = mantissa.double() * 2.0 ** (format.word_length - 1) > format.max_code
    smallest = exponent - (format.word_length - 1) + carry.to(torch.int32)
    return torch.where(magnitude > 0, smallest.clamp(MIN_EXPONENT, format.max_exponent), MIN_EXPONENT)


def quantize(x: Tensor, format: FixedPointFormat, bits: Tensor | None) -> tuple[Blocks, int]:
    """Round ``x`` into ``format``.

    The exponent of a dynamic block is the smallest that holds its largest magnitude *after* rounding too: where
    rounding down has left every code of a block small enough for a smaller exponent, the codes are doubled, which
    changes no value. Hence code -> float32 -> code is the identity.

    Args:
        x: float32 of any shape; infinities saturate; a NaN is the caller's to refuse.
        bits: int32 of shape ``(rows, row_length)``, or ``None`` to round to nearest.

    Returns:
        the blocks, and how many elements were out of range and saturated.
    """
    return quantize_roots(square_root(x) if format.squared else x, format, bits)


def quantize_roots(x: Tensor, format: FixedPointFormat, bits: Tensor | None) -> tuple[Blocks, int]:
    """As :func:`quantize`, given the square roots of the values if the format is squared."""
    shape = x.shape
    rows, row_length = rows_of(shape)
    flat = x.reshape(rows, row_length).clamp(-FLOAT32_MAX, FLOAT32_MAX)
    if not format.dynamic:
        code, saturated = _round_saturating(flat, torch.tensor(format.static_exponent), format, bits)
        return Blocks(*to_planes(code.reshape(shape), format), None), saturated

    count = format.blocks_per_row(row_length)
    widen = (0, count * format.block_size - row_length)
    blocked = pad(flat, widen).reshape(rows, count, format.block_size)
    blocked_bits = None if bits is None else pad(bits, widen).reshape(rows, count, format.block_size)
    exponent = block_exponents(blocked.abs().amax(-1, keepdim=True), format)
    code, saturated = _round_saturating(blocked, exponent, format, blocked_bits)
    if format.squared:
        code = torch.where(blocked > 0, code.clamp_min(1), code)
    largest = code.abs().amax(-1, keepdim=True)
    spare = (largest > 0) & (largest <= format.max_code >> 1) & (exponent > MIN_EXPONENT)
    code = torch.where(spare, code * 2, code)
    exponent = torch.where(largest > 0, exponent - spare.to(torch.int32), MIN_EXPONENT)
    code = code.reshape(rows, count * format.block_size)[:, :row_length]
    return Blocks(*to_planes(code.reshape(shape), format), exponent.reshape(rows, count).to(torch.int8)), saturated


def rounded(x: Tensor, format: FixedPointFormat, bits: Tensor | None) -> tuple[Tensor, int]:
    """The numbers of ``format`` that ``x`` is rounded to, as float32, without storing them; what is not finite stays.

    Args:
        x: float32 of any shape; for a static format float64 too, which is rounded once, straight to its codes.
        bits: int32 of shape ``(rows, row_length)``, or ``None`` to round to nearest.

    Returns:
        the numbers, and how many elements were out of range and saturated.
    """
    finite = x.isfinite()
    kept = torch.where(finite, x, 0.0)
    if format.dynamic:
        blocks, saturated = quantize(kept.float(), format, bits)
        return torch.where(finite, dequantize(blocks, format), x.float()), saturated
    exponent = torch.tensor(format.static_exponent)
    code, saturated = _round_saturating(kept.reshape(rows_of(x.shape)), exponent, format, bits)
    value = (code.double() * _power_of_two(exponent)).float().reshape(x.shape)
    return torch.where(finite, value, x.float()), saturated


def _round_saturating(x: Tensor, exponent: Tensor, format: FixedPointFormat, bits: Tensor | None) -> tuple[Tensor, int]:
    scaled = x.double() * _power_of_two(-exponent)
    low, high = float(format.min_code), float(format.max_code)
    saturated = int(((scaled < low) | (scaled > high)).sum())
    return round_to_code(scaled.clamp(low, high), bits), saturated


def _power_of_two(exponent: Tensor) -> Tensor:
    """``2**exponent`` in float64, assembled from its bits: torch's pow and ldexp promise no exact result."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def dequantize(blocks: Blocks, format: FixedPointFormat) -> Tensor:
    """The stored numbers as float32: exact, or for a squared format the square, rounded once and finite."""
    value = from_planes(blocks, format).double() * code_size(blocks, format)
    return (value.square().clamp_max(FLOAT32_MAX) if format.squared else value).float()


def code_size(blocks: Blocks, format: FixedPointFormat) -> Tensor:
    """What one code stands for at each element, or for a squared format its root: float64, of the codes' shape.

    NaN in a block that is marked as not finite.
    """
    shape = blocks.codes.shape
    if blocks.exponents is None:
        return _power_of_two(torch.tensor(format.static_exponent)).to(blocks.codes.device).expand(shape)
    exponent = blocks.exponents.repeat_interleave(format.block_size, 1)[:, : rows_of(shape)[1]]
    return exponent_size(exponent).reshape(shape)


def exponent_size(exponent: Tensor) -> Tensor:
    """``2**exponent`` in float64, of int8 exponents; NaN of a block that is marked as not finite."""
    return torch.where(exponent == NOT_FINITE, torch.nan, _power_of_two(exponent))
