"""Packed codes on the device: the layout of :func:`lowprec_plugin.arithmetic.reference.wire.pack`.

A tile is a matrix whose every row is one block, and a block's codes are packed without gaps, lowest bits first. Codes
of 16 and 8 bits are integers in memory, two of 4 bits share a byte, and eight of 12 bits share three words of 32.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl

from lowprec_plugin.arithmetic.triton.launches import pointer


@triton.jit
def _offsets(block, UNITS: tl.constexpr):
    """Where the units that blocks are packed in lie, ``UNITS`` a block."""
    return block * UNITS + tl.arange(0, UNITS)[None, :]


@triton.jit
def load_packed(packed, block, inside, WORD_LENGTH: tl.constexpr, WIDTH: tl.constexpr):
    """The codes of the blocks ``block``, int32 of shape ``(blocks, WIDTH)``; 0 where ``inside`` does not hold."""
    if WORD_LENGTH == 16:
        code = tl.load(pointer(packed, tl.int16, True) + _offsets(block, WIDTH), mask=inside, other=0).to(tl.int32)
    elif WORD_LENGTH == 8:
        code = tl.load(pointer(packed, tl.int8, True) + _offsets(block, WIDTH), mask=inside, other=0).to(tl.int32)
    elif WORD_LENGTH == 4:
        at = _offsets(block, WIDTH // 2)
        octet = tl.load(pointer(packed, tl.int8, True) + at, mask=inside, other=0).to(tl.int32)
        code = tl.reshape(tl.join((octet << 28) >> 28, octet >> 4), (block.shape[0], WIDTH))
    else:
        words = pointer(packed, tl.uint32, True) + block * (WIDTH // 8 * 3) + tl.arange(0, WIDTH // 8)[None, :] * 3
        first = tl.load(words, mask=inside, other=0)
        second = tl.load(words + 1, mask=inside, other=0)
        third = tl.load(words + 2, mask=inside, other=0)
        # Four pairs of codes, each 24 bits; what is above them does not matter.
        even = tl.join(first, (second >> 16) | (third << 16))
        odd = tl.join((first >> 24) | (second << 8), third >> 8)
        pair = tl.reshape(tl.join(even, odd), (block.shape[0], WIDTH // 2)).to(tl.int32)
        code = tl.reshape(tl.join((pair << 20) >> 20, (pair << 8) >> 20), (block.shape[0], WIDTH))
    return code


@triton.jit
def store_packed(packed, block, inside, code, WORD_LENGTH: tl.constexpr, WIDTH: tl.constexpr):
    """Write int32 codes of shape ``(blocks, WIDTH)`` to the blocks ``block``."""
    if WORD_LENGTH == 16:
        tl.store(pointer(packed, tl.int16, True) + _offsets(block, WIDTH), code.to(tl.int16), mask=inside)
    elif WORD_LENGTH == 8:
        tl.store(pointer(packed, tl.int8, True) + _offsets(block, WIDTH), code.to(tl.int8), mask=inside)
    else:
        low, high = tl.split(tl.reshape(code, (block.shape[0], WIDTH // 2, 2)))
        if WORD_LENGTH == 4:
            octet = (low & 0xF) | (high << 4)
            tl.store(pointer(packed, tl.int8, True) + _offsets(block, WIDTH // 2), octet.to(tl.int8), mask=inside)
        else:
            pair = ((low & 0xFFF) | ((high & 0xFFF) << 12)).to(tl.uint32)
            even, odd = tl.split(tl.reshape(pair, (block.shape[0], WIDTH // 8, 2, 2)))
            first, third = tl.split(even)
            second, fourth = tl.split(odd)
            words = pointer(packed, tl.uint32, True) + block * (WIDTH // 8 * 3) + tl.arange(0, WIDTH // 8)[None, :] * 3
            tl.store(words, first | (second << 24), mask=inside)
            tl.store(words + 1, (second >> 8) | (third << 16), mask=inside)
            tl.store(words + 2, (third >> 16) | (fourth << 8), mask=inside)
