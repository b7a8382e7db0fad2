"""Stateless random bits for stochastic rounding.

Every rounding takes 16 random bits that are a hash of *what* is rounded and *when*: the seed, the tensor's name, the
step and the element's place in the whole tensor. There is no generator: nothing to checkpoint, nothing to advance in
order, and the same bits on every device, any number of ranks, and after a resume.

The chain, the first two links 64-bit integers::

    stream = stream_of(seed, "layer.weight")              once per tensor
    key    = key_of(stream, step)                         once per rounding of the tensor
    bits   = hash32(counter of the element, key, role)    once per two elements

What is rounded together, a parameter and its state, shares a key and differs in the role.

Elements are counted row by row, with every row's length rounded up to a multiple of 16. In each group of 16, word
``j`` (``j < 8``) serves element ``j`` with its low half and element ``j + 8`` with its high half, which is the order
in which vector units want them.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from lowprec_plugin.formats import rows_of

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15
#: Elements that share one group of eight random words.
GROUP = 16
#: The last shift and multiplier of a role: 0 for a parameter or a tensor alone, then its state. The first are
#: ``lowbias32``'s, the other multipliers MurmurHash3's (Appleby 2011). Shifts must differ: with one for all, the low
#: bits of two roles depend on each other.
ROLES = ((15, 0x846CA68B), (14, 0x85EBCA6B), (17, 0xC2B2AE35))


class Draw(NamedTuple):
    """With which random bits a tensor is rounded.

    Attributes:
        stochastic: whether to round with any; else to nearest.
        key: makes them, see :func:`key_of`.
        bits: those that a caller brings, in place of the key's; see :func:`check_bits`.
        first_row: the row of the whole tensor at which this starts, if it is a shard.
    """

    stochastic: bool
    key: int = 0
    bits: Tensor | None = None
    first_row: int = 0


def mix64(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64-bit integers that scatters them."""
    value &= _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def stream_of(seed: int, name: str) -> int:
    """The random stream of the tensor called ``name`` under ``seed``."""
    return substream(mix64(seed + _GOLDEN), name)


def substream(stream: int, name: str) -> int:
    """A stream independent of ``stream`` and of its substreams with other names."""
    return mix64(stream ^ int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"))


def key_of(stream: int, step: int) -> int:
    """The 64-bit key of one rounding of a whole tensor."""
    return mix64(stream + (step + 1) * _GOLDEN)


def padded_row(row_length: int) -> int:
    """The length that a row counts for: ``row_length`` rounded up to whole groups of 16."""
    return -(-row_length // GROUP) * GROUP


def random_bits(
    key: int, rows: int, row_length: int, first_row: int = 0, device: torch.device | None = None, role: int = 0
) -> Tensor:
    """Sixteen random bits for every element of a tensor.

    Args:
        key: from :func:`key_of`.
        rows, row_length: the tensor's shape, see :func:`lowprec_plugin.formats.rows_of`.
        first_row: the row of the whole tensor at which this shard of it starts.
        device: where to make them.
        role: which of the tensors that are rounded with this key.

    Returns:
        int32 of shape ``(rows, row_length)``, uniform on 0 to 65535.
    """
    row = torch.arange(first_row, first_row + rows, device=device, dtype=torch.int64).unsqueeze(1)
    column = torch.arange(row_length, device=device, dtype=torch.int64)
    counter = row * (padded_row(row_length) // 2) + (column // GROUP) * 8 + column % 8
    word = hash32(counter, key, role)
    return ((word >> ((column // 8) % 2 * 16)) & 0xFFFF).to(torch.int32)


def check_bits(bits: Tensor, x: Tensor) -> None:
    """Check random bits that a caller gives in place of the hashed ones, for every element of ``x``.

    Reads them, and so waits for the device.

    Raises:
        ValueError: unless they are int32 of shape ``(rows, row_length)``, 0 to 65535, on ``x``'s device.
    """
    shape = rows_of(x.shape)
    if bits.dtype != torch.int32 or bits.shape != shape or bits.device != x.device:
        raise ValueError(
            f"bits are {bits.dtype} of shape {tuple(bits.shape)} on {bits.device}: a tensor of shape {tuple(x.shape)} "
            f"needs int32 of shape {shape} on {x.device}"
        )
    if bits.numel() and not 0 <= int(bits.min()) <= int(bits.max()) <= 65535:
        raise ValueError(f"bits are {int(bits.min())} to {int(bits.max())}: give 16 bits, 0 to 65535")


def hash32(counter: Tensor, key: int, role: int = 0) -> Tensor:
    """A keyed 32-bit hash of 64-bit counters, two rounds of multiply and xor-shift with a half of the key before each.

    The role comes last, so that three tensors' words cost little more than one's. Multipliers (role 0) and shifts are
    those of ``lowbias32`` (Wellons, "Prospecting for Hash Functions", 2018).
    """
    first, second = key & _MASK32, key >> 32
    word = ((counter & _MASK32) ^ (first + (counter >> 32) * 0x9E3779B9)) & _MASK32
    word = ((word ^ (word >> 16)) * 0x7FEB352D + second) & _MASK32
    shift, multiplier = ROLES[role]
    word = ((word ^ (word >> shift)) * multiplier) & _MASK32
    return word ^ (word >> 16)
