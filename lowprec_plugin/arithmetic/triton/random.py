"""The random bits of :mod:`lowprec_plugin.arithmetic.random_bits` on the device.

``word = hash32(counter, key, role)``; in every group of 16 elements, word ``j`` serves element ``j`` with its low half
and element ``j + 8`` with its high half.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl

from lowprec_plugin.arithmetic.random_bits import ROLES

#: The roles, each a shift and a multiplier: a parameter or a tensor alone, its first state, its second.
ALONE, FIRST_STATE, SECOND_STATE = (tl.constexpr(role) for role in ROLES)


@triton.jit
def hash32(counter, key, ROLE: tl.constexpr, WIDE: tl.constexpr):
    """:func:`lowprec_plugin.arithmetic.random_bits.hash32` of int64 counters if ``WIDE``, else of uint32 ones."""
    word = counter.to(tl.uint32)
    first = key.to(tl.uint32)
    if WIDE:
        first += (counter >> 32).to(tl.uint32) * 0x9E3779B9
    word ^= first
    word = (word ^ (word >> 16)) * 0x7FEB352D + (key >> 32).to(tl.uint32)
    word = (word ^ (word >> ROLE[0])) * ROLE[1]
    return word ^ (word >> 16)


@triton.jit
def random_bits(counter, key, ROLE: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """Sixteen random bits for each of ``WIDTH`` elements of every block.

    ``counter`` is that of a block's first element, of shape ``(blocks, 1)``. Returns int32 ``(blocks, WIDTH)``.
    """
    if WIDTH < 16:  # a block is the first half of one group, if that
        bits = hash32(counter + tl.arange(0, WIDTH)[None, :], key, ROLE, WIDE) & 0xFFFF
    else:
        word = hash32(counter + tl.arange(0, WIDTH // 2)[None, :], key, ROLE, WIDE)
        word = tl.reshape(word, (counter.shape[0], WIDTH // 16, 8))
        halves = tl.permute(tl.join(word & 0xFFFF, word >> 16), (0, 1, 3, 2))
        bits = tl.reshape(halves, (counter.shape[0], WIDTH))
    return bits.to(tl.int32)
