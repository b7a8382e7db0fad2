"""What crosses the network, normatively and in torch: how gradients are packed, summed and read.

A gradient is taken as one flat row of numbers, in *wire blocks* of 256 consecutive ones, the last filled up with
zeros. A block is a radix point (an int8 exponent) and 256 codes of 4, 8, 12 or 16 bits, packed without gaps. A block
with a NaN or an infinity in it travels as such: exponent ``NOT_FINITE``, and arrives as NaN.

Blocks belong to one gradient and their random bits to their place in it, so that nothing depends on how gradients
were put together for the journey.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.random_bits import random_bits
from lowprec_plugin.arithmetic.reference import rounding as reference
from lowprec_plugin.formats import NOT_FINITE, FixedPointFormat

BLOCK = 256
WORD_LENGTHS = (4, 8, 12, 16)
#: The format in which the losses of earlier roundings are kept.
RESIDUAL = FixedPointFormat(8, block_size=BLOCK)
#: Roles of the random bits (:mod:`lowprec_plugin.arithmetic.random_bits`).
SENT, KEPT, SUMMED = range(3)


class Piece(NamedTuple):
    """A run of whole blocks of one gradient; the last may end early if it is the gradient's last.

    Attributes:
        values: the numbers, flat and contiguous: a gradient to send, or where a mean goes.
        first_block: its place in the whole gradient, in blocks.
        place: its place in a chunk, in blocks.
        key: of the random bits that this rank rounds its own gradient with.
        sum_key: of those that a sum is rounded with, the same on every rank.
        residual: 8-bit codes and exponents of shape ``(blocks, 256)`` and ``(blocks, 1)`` of what earlier roundings
            lost, which is added before rounding; changed in place. ``None``: no error feedback.
    """

    values: Tensor
    first_block: int
    place: int
    key: int
    sum_key: int
    residual: Blocks | None = None

    @property
    def blocks(self) -> int:
        """Blocks in the run."""
        return blocks_of(self.values.numel())


class Chunk(NamedTuple):
    """Packed blocks: what goes to one rank.

    Attributes:
        codes: uint8 of shape ``(blocks, 32 * word_length)``.
        exponents: int8 of shape ``(blocks,)``.
    """

    codes: Tensor
    exponents: Tensor


def blocks_of(elements: int) -> int:
    """Blocks that hold ``elements`` numbers."""
    return -(-elements // BLOCK)


def chunk_bytes(blocks: int, word_length: int) -> int:
    """Bytes of a chunk: codes, then exponents, filled up to a multiple of 16 so that codes lie well in memory."""
    return blocks * BLOCK * word_length // 8 + -(-blocks // 16) * 16


def chunk_of(buffer: Tensor, blocks: int, word_length: int) -> Chunk:
    """``buffer`` (uint8, :func:`chunk_bytes` long) as a chunk, sharing memory."""
    codes = blocks * BLOCK * word_length // 8
    exponents = buffer[codes : codes + blocks].view(torch.int8)
    return Chunk(buffer[:codes].view(blocks, BLOCK * word_length // 8), exponents)


def round_(pieces: Sequence[Piece], chunk: Chunk, word_length: int, stochastic: bool) -> None:
    """Round gradients, each plus its residual, into ``chunk``; keep in the residual what the rounding lost."""
    format = FixedPointFormat(word_length, block_size=BLOCK)
    for piece in pieces:
        place = slice(piece.place, piece.place + piece.blocks)
        x = pad(piece.values.float(), (0, piece.blocks * BLOCK - piece.values.numel())).view(-1, BLOCK)
        if piece.residual is not None:
            x = x + reference.dequantize(piece.residual, RESIDUAL)
        code, exponent = _encode(x, format, piece, piece.key if stochastic else None, SENT)
        chunk.codes[place], chunk.exponents[place] = pack(code, word_length), exponent
        if piece.residual is not None:
            finite = (exponent != NOT_FINITE).unsqueeze(1)
            lost = torch.where(finite, x, 0) - _decode(code, torch.where(finite, exponent.unsqueeze(1), 0))
            kept, _ = reference.quantize(lost, RESIDUAL, _bits(piece, piece.key if stochastic else None, KEPT))
            for plane, new in zip(piece.residual.planes, kept.planes, strict=True):
                plane.copy_(torch.where(finite, new, plane))


def sum_(
    pieces: Sequence[Piece], chunks: Sequence[Chunk], out: Chunk, word_length: int, divisor: float, stochastic: bool
) -> None:
    """Sum the ranks' chunks in float32, in rank order, divide once, and round into ``out``.

    The numbers are summed at a scale, a power of two, at which no sum of so many overflows.
    """
    format = FixedPointFormat(word_length, block_size=BLOCK)
    headroom = (len(chunks) - 1).bit_length()
    for piece in pieces:
        place = slice(piece.place, piece.place + piece.blocks)
        total, finite = None, torch.ones(piece.blocks, 1, dtype=torch.bool, device=out.codes.device)
        for chunk in chunks:
            exponent = chunk.exponents[place].unsqueeze(1)
            finite = finite & (exponent != NOT_FINITE)
            x = _decode(unpack(chunk.codes[place], word_length), torch.where(finite, exponent, 0).int() - headroom)
            total = x if total is None else total + x
        assert total is not None
        # By a tensor: by a number, torch on a GPU multiplies by its reciprocal.
        mean = torch.where(finite, total / torch.full_like(total, divisor * 2.0**-headroom), torch.inf)
        code, exponent = _encode(mean, format, piece, piece.sum_key if stochastic else None, SUMMED)
        out.codes[place], out.exponents[place] = pack(code, word_length), exponent


def read_(pieces: Sequence[Piece], chunk: Chunk, word_length: int) -> None:
    """Write the numbers of ``chunk`` to the pieces' ``values``; NaN where a block is not finite."""
    for piece in pieces:
        place = slice(piece.place, piece.place + piece.blocks)
        exponent = chunk.exponents[place].unsqueeze(1)
        finite = exponent != NOT_FINITE
        x = _decode(unpack(chunk.codes[place], word_length), torch.where(finite, exponent, 0))
        x = torch.where(finite, x, torch.nan)
        piece.values.copy_(x.flatten()[: piece.values.numel()])


def pack(code: Tensor, word_length: int) -> Tensor:
    """Codes of shape ``(blocks, 256)``, without gaps: uint8 ``(blocks, 32 * word_length)``, lowest bits first."""
    if word_length % 8 == 0:
        return code.to(torch.int8 if word_length == 8 else torch.int16).contiguous().view(torch.uint8)
    low, high = (code.to(torch.int32)[:, half::2] for half in range(2))
    if word_length == 4:
        return ((low & 0xF) | (high & 0xF) << 4).to(torch.uint8)
    pair = (low & 0xFFF) | (high & 0xFFF) << 12
    return torch.stack([pair & 0xFF, pair >> 8 & 0xFF, pair >> 16], dim=-1).flatten(1).to(torch.uint8)


def unpack(packed: Tensor, word_length: int) -> Tensor:
    """The int32 codes that :func:`pack` packed."""
    if word_length % 8 == 0:
        return packed.contiguous().view(torch.int8 if word_length == 8 else torch.int16).to(torch.int32)
    octet = packed.to(torch.int32)
    if word_length == 4:
        pairs = torch.stack([octet & 0xF, octet >> 4], dim=-1)
    else:
        word = octet[:, 0::3] | octet[:, 1::3] << 8 | octet[:, 2::3] << 16
        pairs = torch.stack([word & 0xFFF, word >> 12], dim=-1)
    sign = 1 << (word_length - 1)
    return (pairs.flatten(1) ^ sign) - sign


def _bits(piece: Piece, key: int | None, role: int) -> Tensor | None:
    if key is None:
        return None
    return random_bits(key, piece.blocks, BLOCK, piece.first_block, piece.values.device, role)


def _encode(x: Tensor, format: FixedPointFormat, piece: Piece, key: int | None, role: int) -> tuple[Tensor, Tensor]:
    finite = torch.isfinite(x).all(dim=1)
    blocks, _ = reference.quantize(torch.where(finite.unsqueeze(1), x, 0), format, _bits(piece, key, role))
    assert blocks.exponents is not None
    return blocks.codes, torch.where(finite, blocks.exponents[:, 0], NOT_FINITE).to(torch.int8)


def _decode(code: Tensor, exponent: Tensor) -> Tensor:
    return torch.ldexp(code.float(), exponent.int())
