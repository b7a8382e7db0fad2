from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lowprec_plugin.arithmetic import ops, wire_ops
from lowprec_plugin.arithmetic.blocks import empty_blocks
from lowprec_plugin.arithmetic.native import library as native
from lowprec_plugin.arithmetic.native import wire as native_wire
from lowprec_plugin.arithmetic.random_bits import key_of
from lowprec_plugin.arithmetic.reference import wire as wire_reference
from lowprec_plugin.arithmetic.reference.wire import (
    BLOCK,
    NOT_FINITE,
    RESIDUAL,
    WORD_LENGTHS,
    Chunk,
    Piece,
    blocks_of,
    chunk_bytes,
    chunk_of,
    pack,
    unpack,
)
from lowprec_plugin.formats import MIN_EXPONENT

needs_native = pytest.mark.skipif(not native.available()[0], reason=native.available()[1])
SIZES = (1, 255, 256, 257, 1000, 4096)


def laid_out(gradients: list[Tensor], rank: int = 0, residuals: bool = False) -> tuple[list[Piece], int]:
    """Pieces one behind the other, and how many blocks they have."""
    pieces, place = [], 0
    for index, gradient in enumerate(gradients):
        blocks = blocks_of(gradient.numel())
        residual = empty_blocks((blocks, BLOCK), RESIDUAL, None) if residuals else None
        pieces.append(Piece(gradient, index, place, key_of(rank, index), key_of(-1, index), residual))
        place += blocks
    return pieces, place


def gradients(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.rand(len(SIZES), generator=generator).mul(60).sub(30).exp2()
    return [(torch.randn(n, generator=generator) * s).to(dtype) for n, s in zip(SIZES, scales, strict=True)]


def empty_chunk(blocks: int, word_length: int) -> Chunk:
    return chunk_of(torch.zeros(chunk_bytes(blocks, word_length), dtype=torch.uint8), blocks, word_length)


def empty_chunks(ranks: int, blocks: int, word_length: int) -> list[Chunk]:
    buffer = torch.zeros(ranks, chunk_bytes(blocks, word_length), dtype=torch.uint8)
    return [chunk_of(row, blocks, word_length) for row in buffer]


@pytest.mark.parametrize("word_length", WORD_LENGTHS)
def test_packing_is_exact_and_without_gaps(word_length: int) -> None:
    largest = 2 ** (word_length - 1) - 1
    code = torch.randint(-largest, largest + 1, (7, BLOCK), generator=torch.Generator().manual_seed(0))
    code[0, :2] = torch.tensor([-largest, largest])
    packed = pack(code, word_length)
    assert packed.dtype == torch.uint8
    assert packed.shape == (7, BLOCK * word_length // 8)
    assert torch.equal(unpack(packed, word_length), code.to(torch.int32))


@pytest.mark.parametrize("word_length", WORD_LENGTHS)
@pytest.mark.parametrize("rounding", ops.ROUNDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@needs_native
def test_native_is_the_reference_bit_for_bit(word_length: int, rounding: str, dtype: torch.dtype) -> None:
    results = []
    for backend in ("reference", "native"):
        with ops.use_backend(backend):
            ranks = [laid_out(gradients(dtype, seed), seed, residuals=True) for seed in range(3)]
            blocks = ranks[0][1]
            ranks[1][0][4].values[700] = torch.inf
            chunks = empty_chunks(3, blocks, word_length)
            for _ in range(3):
                for (pieces, _), chunk in zip(ranks, chunks, strict=True):
                    wire_ops.round_(pieces, chunk, word_length, rounding)
            out = empty_chunk(blocks, word_length)
            wire_ops.sum_(ranks[0][0], chunks, out, word_length, 3.0, rounding)
            wire_ops.read_(ranks[0][0], out, word_length)
            planes = [plane for piece in ranks[0][0] for plane in piece.residual.planes]  # type: ignore[union-attr]
            results.append([*out, *(plane for chunk in chunks for plane in chunk), *planes])
            results[-1] += [piece.values.nan_to_num(7.0) for piece in ranks[0][0]]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("word_length", WORD_LENGTHS)
def test_sum_against_float64(word_length: int) -> None:
    """The mean is off by less than the ranks' codes together and one of its own."""
    ranks = [laid_out(gradients(seed=0), rank) for rank in range(5)]
    for rank, (pieces, _) in enumerate(ranks):
        for piece in pieces:
            piece.values.mul_(rank - 1.5)
    exact = [sum(p[i].values.double() for p, _ in ranks) / 5 for i in range(len(SIZES))]
    chunks = empty_chunks(5, ranks[0][1], word_length)
    for (pieces, _), chunk in zip(ranks, chunks, strict=True):
        wire_ops.round_(pieces, chunk, word_length, "stochastic")
    out = empty_chunk(ranks[0][1], word_length)
    wire_ops.sum_(ranks[0][0], chunks, out, word_length, 5.0, "stochastic")
    steps = sum(chunk.exponents.double().exp2() for chunk in chunks) / 5 + out.exponents.double().exp2()
    wire_ops.read_(ranks[0][0], out, word_length)
    for piece, mean in zip(ranks[0][0], exact, strict=True):
        bound = steps[piece.place : piece.place + piece.blocks].repeat_interleave(BLOCK)[: mean.numel()]
        assert bool(((piece.values.double() - mean).abs() <= bound * (1 + 1e-5)).all())


@pytest.mark.parametrize("word_length", WORD_LENGTHS)
def test_rounding_is_unbiased(word_length: int) -> None:
    """The mean of 10,000 roundings lies within four standard errors of the number."""
    x = torch.randn(BLOCK, generator=torch.Generator().manual_seed(3))
    total, squares, rounds = torch.zeros(BLOCK).double(), torch.zeros(BLOCK).double(), 10_000
    chunk = empty_chunk(1, word_length)
    for step in range(rounds):
        wire_ops.round_([Piece(x, 0, 0, key_of(5, step), 0)], chunk, word_length, "stochastic")
        got = Piece(torch.empty(BLOCK), 0, 0, 0, 0)
        wire_ops.read_([got], chunk, word_length)
        total += got.values
        squares += (got.values - x).double() ** 2
    error = (total / rounds - x).abs()
    standard = (squares / rounds).sqrt() / math.sqrt(rounds)
    assert float((error > 4 * standard + 1e-12).double().mean()) <= 1 / BLOCK  # of 256, one may by chance


def test_extremes_do_not_overflow() -> None:
    largest = torch.finfo(torch.float32).max
    for word_length in WORD_LENGTHS:
        ranks = [Piece(torch.full((300,), largest), 0, 0, key_of(r, 0), 1) for r in range(6)]
        chunks = empty_chunks(6, 2, word_length)
        for piece, chunk in zip(ranks, chunks, strict=True):
            wire_ops.round_([piece], chunk, word_length, "stochastic")
        out = empty_chunk(2, word_length)
        wire_ops.sum_(ranks[:1], chunks, out, word_length, 6.0, "stochastic")
        wire_ops.read_(ranks[:1], out, word_length)
        assert bool(ranks[0].values.isfinite().all())
        assert bool((ranks[0].values >= largest * (1 - 2.0 ** (2 - word_length))).all())
        wire_ops.sum_(ranks[:1], chunks, out, word_length, 1.0, "stochastic")  # the sum itself is beyond float32
        assert out.exponents.tolist() == [NOT_FINITE] * 2


def test_a_block_that_is_not_finite_arrives_as_nan_and_alone() -> None:
    values = torch.ones(1000)
    values[300] = torch.nan
    chunk = empty_chunk(4, 16)
    wire_ops.round_([Piece(values, 0, 0, 1, 1)], chunk, 16, "stochastic")
    out = Piece(torch.empty(1000), 0, 0, 0, 0)
    wire_ops.read_([out], chunk, 16)
    assert out.values[256:512].isnan().all()
    assert torch.equal(torch.cat([out.values[:256], out.values[512:]]), torch.ones(1000 - 256))


def test_pieces_of_a_gradient_travel_as_the_whole_does() -> None:
    x = torch.randn(2000, generator=torch.Generator().manual_seed(1))
    whole, parts = empty_chunk(8, 8), empty_chunk(8, 8)
    wire_ops.round_([Piece(x, 0, 0, 9, 9)], whole, 8, "stochastic")
    wire_ops.round_([Piece(x[1280:], 5, 0, 9, 9), Piece(x[:1280], 0, 3, 9, 9)], parts, 8, "stochastic")
    assert torch.equal(whole.codes, torch.cat([parts.codes[3:], parts.codes[:3]]))


def test_error_feedback_keeps_what_rounding_lost() -> None:
    """Over many steps the sum of what was sent follows the sum of the gradients, to nearest or not."""
    x = torch.randn(512, generator=torch.Generator().manual_seed(1))
    for rounding in ops.ROUNDINGS:
        sent = {}
        for feedback in (False, True):
            residual = empty_blocks((2, BLOCK), RESIDUAL, None) if feedback else None
            total, chunk = torch.zeros(512), empty_chunk(2, 4)
            for step in range(100):
                wire_ops.round_([Piece(x, 0, 0, key_of(1, step), 0, residual)], chunk, 4, rounding)
                got = Piece(torch.empty(512), 0, 0, 0, 0)
                wire_ops.read_([got], chunk, 4)
                total += got.values
            sent[feedback] = float((total - 100 * x).abs().max())
        assert sent[True] < 1.0
        assert sent[False] > 3 * sent[True]


def test_word_lengths() -> None:
    with pytest.raises(ValueError, match=r"comm_word_length=10 is not one of \(4, 8, 12, 16\)"):
        wire_ops.check_word_length(10, "comm_word_length")


@needs_native
@pytest.mark.parametrize("word_length", WORD_LENGTHS)
def test_bytes_of_any_kind_are_read_and_summed_and_nothing_is_written_beside_them(word_length: int) -> None:
    blocks, elements, guard = 3, 700, 64
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        sent = torch.randint(256, (3, chunk_bytes(blocks, word_length)), dtype=torch.uint8, generator=generator)
        found = []
        for backend in (wire_reference, native_wire):
            values = torch.full((elements + 2 * guard,), 7.0)
            out = torch.full((chunk_bytes(blocks, word_length) + guard,), 7, dtype=torch.uint8)
            piece = Piece(values[guard:-guard], 0, 0, key_of(0, 0), key_of(0, 1))
            chunks = [chunk_of(row, blocks, word_length) for row in sent]
            summed = chunk_of(out[:-guard], blocks, word_length)
            backend.read_([piece], chunks[0], word_length)
            backend.sum_([piece], chunks, summed, word_length, 3.0, True)
            assert bool((torch.cat([values[:guard], values[-guard:], out[-guard:]]) == 7).all())
            found.append((values[guard:-guard], summed))
        (numbers, summed), (natively, natively_summed) = found
        # No rank sends exponents below the smallest of a format: what they stand for is each backend's own.
        lawful = torch.stack([chunk.exponents for chunk in chunks]) >= MIN_EXPONENT
        for block in range(blocks):
            place = slice(block * BLOCK, (block + 1) * BLOCK)
            if lawful[0, block]:
                assert torch.equal(numbers[place].nan_to_num(7.5), natively[place].nan_to_num(7.5))
            if lawful[:, block].all():
                assert torch.equal(summed.codes[block], natively_summed.codes[block])
                assert summed.exponents[block] == natively_summed.exponents[block]


@needs_native
def test_kernels_get_no_address_of_what_is_too_short() -> None:
    x = torch.randn(600)
    chunk, short = empty_chunk(3, 16), empty_chunk(2, 16)
    residual = empty_blocks((2, BLOCK), RESIDUAL, None)
    with ops.use_backend("native"):
        for piece, into in (
            (Piece(x, 0, 0, 1, 1), short),  # three blocks into two
            (Piece(x, 0, 1, 1, 1), chunk),  # behind the end
            (Piece(x[::2], 0, 0, 1, 1), chunk),  # not contiguous
            (Piece(x, 0, 0, 1, 1, residual), chunk),  # of two blocks
        ):
            with pytest.raises(AssertionError, match=r"blocks from|is not"):
                wire_ops.round_([piece], into, 16, "stochastic")
        with pytest.raises(AssertionError, match="is not"):
            wire_ops.round_([Piece(x, 0, 0, 1, 1)], chunk, 12, "stochastic")  # of another word length
        apart = [empty_chunk(3, 16) for _ in range(3)]
        with pytest.raises(AssertionError, match="lies elsewhere"):
            wire_ops.sum_([Piece(x, 0, 0, 1, 1)], [*apart[:2], apart[0]], chunk, 16, 3.0, "stochastic")
