"""The Triton kernels of the wire do what the reference does, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from lowprec_plugin.arithmetic import ops, wire_ops
from lowprec_plugin.arithmetic.reference.wire import (
    BLOCK,
    NOT_FINITE,
    WORD_LENGTHS,
    Chunk,
    Piece,
    chunk_bytes,
    chunk_of,
)
from tests.arithmetic.test_wire import laid_out
from tests.arithmetic.triton.conftest import DEVICE, INTERPRETED

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
# A process of its own interprets these, see test_modes.py.

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Whole blocks, a block and a bit, less than one, and more than a program works on.
SIZES = (512, 257, 1, 1000)


def chunks(count: int, blocks: int, word_length: int, device: str) -> list[Chunk]:
    buffer = torch.full((count, chunk_bytes(blocks, word_length)), 0x55, dtype=torch.uint8, device=device)
    return [chunk_of(row, blocks, word_length) for row in buffer]


def on(device: str, pieces: list[Piece]) -> list[Piece]:
    """Copies, the last of values off 128-bit boundaries."""
    made = []
    for index, piece in enumerate(pieces):
        skip = int(index == len(pieces) - 1)
        values = torch.empty(piece.values.numel() + skip, dtype=piece.values.dtype, device=device)[skip:]
        residual = None if piece.residual is None else piece.residual.map(lambda plane: plane.to(device, copy=True))
        made.append(piece._replace(values=values.copy_(piece.values), residual=residual))
    return made


def journey(ranks: list[list[Piece]], word_length: int, rounding: str, divisor: float, device: str) -> list[Tensor]:
    """What the ranks round, the second time with what the first has lost, what that sums to, and what arrives."""
    ranks = [on(device, pieces) for pieces in ranks]
    blocks = max(piece.place + piece.blocks for piece in ranks[0])
    *sent, out = chunks(len(ranks) + 1, blocks, word_length, device)
    for pieces, chunk in zip(ranks, sent, strict=True):
        for _ in range(2):
            wire_ops.round_(pieces, chunk, word_length, rounding)
    wire_ops.sum_(ranks[0], sent, out, word_length, divisor, rounding)
    wire_ops.read_(ranks[0], out, word_length)
    found = [plane for chunk in (*sent, out) for plane in chunk]
    found += [plane for pieces in ranks for piece in pieces if piece.residual for plane in piece.residual.planes]
    return [tensor.cpu() for tensor in found] + [piece.values.cpu().nan_to_num(7.0) for piece in ranks[0]]


def both(
    ranks: list[list[Piece]], word_length: int, rounding: str, divisor: float = 3.0
) -> tuple[list[Tensor], list[Tensor]]:
    """The same journey by the reference and by the kernels."""
    with ops.use_backend("reference"):
        expected = journey(ranks, word_length, rounding, divisor, "cpu")
    with ops.use_backend("triton"):
        return expected, journey(ranks, word_length, rounding, divisor, DEVICE)


def equal(expected: list[Tensor], found: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def ranks_of(count: int, dtype: torch.dtype, residuals: bool, change: Callable[[Tensor], object]) -> list[list[Piece]]:
    """The same sizes on every rank, ``change`` made to each gradient."""
    ranks = []
    for rank in range(count):
        generator = torch.Generator().manual_seed(rank)
        made = [(torch.randn(n, generator=generator) * 10.0 ** (-3 * i)).to(dtype) for i, n in enumerate(SIZES)]
        for gradient in made:
            change(gradient)
        ranks.append(laid_out(made, rank, residuals)[0])
    return ranks


@pytest.mark.parametrize(("word_length", "rounding"), list(product(WORD_LENGTHS, ops.ROUNDINGS)))
def test_word_lengths(word_length: int, rounding: str) -> None:
    for dtype in (DTYPES[(word_length // 4 + len(rounding)) % 3],) if INTERPRETED else DTYPES:
        ranks = ranks_of(2, dtype, residuals=True, change=lambda gradient: None)
        ranks[1][3].values[700] = torch.inf
        ranks[0][1] = ranks[0][1]._replace(residual=None)
        expected, found = both(ranks, word_length, rounding)
        assert equal(expected, found)
        assert int((expected[1] == NOT_FINITE).sum()) == 0
        assert int((expected[5] == NOT_FINITE).sum()) == 1


@pytest.mark.parametrize("word_length", [4, 16])
def test_extremes(word_length: int) -> None:
    largest = torch.finfo(torch.float32).max

    def change(gradient: Tensor) -> None:
        gradient[:300] = largest
        gradient[300:600] *= 2.0**-105  # a code's smallest step is near
        gradient[600:900] *= 2.0**-120  # and far, with denormals
        gradient[950:951] = torch.nan

    # A sum does not overflow; what a small divisor leaves of it does, and so does what a residual adds.
    for divisor, residuals, finite in ((3.0, False, [True, True]), (0.7, False, [True, False]), (3.0, True, None)):
        expected, found = both(ranks_of(2, torch.float32, residuals, change), word_length, "stochastic", divisor)
        assert equal(expected, found)
        sent, summed = expected[1], expected[5]
        assert finite in (None, [int(exponents[0]) != NOT_FINITE for exponents in (sent, summed)])


def test_division_is_exact() -> None:
    """Means halfway between two codes, which a multiplication by the divisor's reciprocal would miss."""
    mean = 4 * torch.randint(2**14, 2**15, (BLOCK,), generator=torch.Generator().manual_seed(0)).float() + 2
    total = 41 * mean
    assert bool((total * (1 / torch.tensor(41.0)) != mean).any())
    high = (total / 512).round() * 512
    ranks = [[Piece(part, 0, 0, 0, 0)] for part in (high, total - high)]
    assert equal(*both(ranks, 16, "nearest", 41.0))


@pytest.mark.parametrize("first_block", [2**25 - 3, 2**40 + 1])
def test_counters_beyond_32_bits(first_block: int) -> None:
    x = torch.randn(8 * BLOCK - 1, generator=torch.Generator().manual_seed(0))
    piece = Piece(x, first_block, 0, 2**63 + 5, 2**40 + 3)
    expected, found = both([[piece]], 8, "stochastic")
    assert equal(expected, found)
    with ops.use_backend("reference"):
        other = journey([[piece._replace(first_block=first_block + 2**25)]], 8, "stochastic", 3.0, "cpu")
    assert not equal(expected, other)  # the upper half of a counter counts


def test_pieces_anywhere_and_many_ranks() -> None:
    """Places out of order, a piece without elements, blocks between that nobody writes, ranks not a power of two."""
    generator = torch.Generator().manual_seed(4)
    ranks = []
    for rank in range(5):
        made = [torch.randn(n, generator=generator).bfloat16() for n in (300, 0, 256)]
        ranks.append([Piece(x, i, (3, 0, 1)[i], rank, i) for i, x in enumerate(made)])
    assert equal(*both(ranks, 12, "stochastic", 5.0))


def test_codes_off_boundaries_are_refused() -> None:
    buffer = torch.zeros(chunk_bytes(1, 8) + 1, dtype=torch.uint8, device=DEVICE)[1:]
    piece = Piece(torch.ones(BLOCK, device=DEVICE), 0, 0, 0, 0)
    with ops.use_backend("triton"), pytest.raises(ValueError, match="multiple of 16 bytes"):
        wire_ops.round_([piece], chunk_of(buffer, 1, 8), 8, "nearest")
