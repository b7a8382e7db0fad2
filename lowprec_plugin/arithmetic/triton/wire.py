"""What crosses the network, rounded, summed and read on the device: the laws of :mod:`..reference.wire`.

The pieces of a call that share a gradient type, alignment and whether they have residuals are one launch. A table on
the device describes each in one row; a program finds its piece by bisecting the column of first programs, and works
on a few whole blocks of it from the first load to the last store.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.reference import wire as wire_reference
from lowprec_plugin.arithmetic.reference.wire import BLOCK, Chunk, Piece
from lowprec_plugin.arithmetic.triton.gradients import NOT_FINITE
from lowprec_plugin.arithmetic.triton.launches import FLOAT32, FLOAT_TYPES, load_floats, pointer, row_of, store_floats
from lowprec_plugin.arithmetic.triton.packing import load_packed, store_packed
from lowprec_plugin.arithmetic.triton.random import ALONE, FIRST_STATE, SECOND_STATE, random_bits
from lowprec_plugin.arithmetic.triton.rounding import (
    INFINITE,
    CompiledFormat,
    compiled,
    encode,
    largest_bits,
    power_of_two,
)
from lowprec_plugin.arithmetic.triton.tiles import Tiling, on_boundaries, signed
from lowprec_plugin.formats import FixedPointFormat

SENT, KEPT, SUMMED = ALONE, FIRST_STATE, SECOND_STATE
RESIDUAL = compiled(wire_reference.RESIDUAL)
#: A program is one warp, whose threads agree on a block's exponent without waiting for other warps.
_TILING = Tiling(BLOCK, 1, flat=True, aligned=True, wide=False).filling(warps=1)
_OPTIONS = {"TILING": _TILING, **_TILING.options()}

# The table's columns, 64-bit words, behind a piece's first program: its values, their number, its place in the
# gradient and in the chunk, its key and the two planes of its residual.
VALUES, ELEMENTS, FIRST_BLOCK, PLACE, KEY, KEPT_CODES, KEPT_EXPONENTS = (tl.constexpr(column) for column in range(1, 8))
COLUMNS = tl.constexpr(8)


@triton.jit
def locate_piece(table, count, TILING: tl.constexpr):
    """Where one program works.

    Returns:
        its piece's row; the indices of its blocks in the piece, int64 of shape ``(count, 1)``; which of them exist; how
        many elements the piece has; and whether these fill those blocks.
    """
    item = row_of(tl.program_id(0), table, count, COLUMNS)
    program = tl.program_id(0) - tl.load(item)
    elements = tl.load(item + ELEMENTS)
    block = program * TILING.count + tl.arange(0, TILING.count)[:, None]
    inside = block * TILING.width < elements
    last = tl.minimum((program + 1) * TILING.count, (elements + TILING.width - 1) // TILING.width)
    return item, block, inside, elements, last * TILING.width <= elements


@triton.jit
def load_values(
    address, block, inside, elements, whole, TYPE: tl.constexpr, ALIGNED: tl.constexpr, WIDTH: tl.constexpr
):
    """The gradient's blocks in float32, with zeros behind its end. Only ``whole`` ones can be read in wide loads."""
    at = block * WIDTH + tl.arange(0, WIDTH)[None, :]
    if whole:
        x = load_floats(address, at, inside, TYPE, ALIGNED)
    else:
        x = load_floats(address, at, at < elements, TYPE, ALIGNED)
    return x


@triton.jit
def store_values(
    address, block, inside, elements, whole, x, TYPE: tl.constexpr, ALIGNED: tl.constexpr, WIDTH: tl.constexpr
):
    """Write blocks to the piece's values, float32 or bfloat16."""
    at = block * WIDTH + tl.arange(0, WIDTH)[None, :]
    if whole:
        store_floats(address, at, inside, x, TYPE, ALIGNED)
    else:
        store_floats(address, at, at < elements, x, TYPE, ALIGNED)


@triton.jit
def bits_of(item, block, ROLE: tl.constexpr, TILING: tl.constexpr, STOCHASTIC: tl.constexpr):
    """Random bits for every element of the blocks."""
    bits = 0
    if STOCHASTIC:
        counter = (tl.load(item + FIRST_BLOCK) + block) * (TILING.width // 2)
        key = tl.load(item + KEY)
        # The counters of a block share their upper half, which joins the key once for all of them.
        first = key.to(tl.uint32) + (counter >> 32).to(tl.uint32) * 0x9E3779B9
        key = (key >> 32 << 32) | first.to(tl.int64)
        bits = random_bits(counter.to(tl.uint32), key, ROLE, TILING.width, False)
    return bits


@triton.jit
def encode_finite(x, bits, FORMAT: tl.constexpr, STOCHASTIC: tl.constexpr):
    """The codes of blocks, every block's exponent, and which of them are finite; others get codes of 0."""
    largest = largest_bits(x)
    finite = largest < INFINITE
    code, exponent = encode(tl.where(finite, x, 0.0), tl.where(finite, largest, 0), bits, 0, FORMAT, STOCHASTIC)
    return code, tl.where(finite, exponent, NOT_FINITE), finite


@triton.jit(do_not_specialize=["count"])
def round_kernel(
    table,
    codes,
    exponents,
    count: tl.int32,
    FORMAT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILING: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """Round the ``count`` pieces of ``table``, each plus its residual in the format ``RESIDUAL``, into a chunk."""
    item, block, inside, elements, whole = locate_piece(table, count, TILING)
    at = tl.load(item + PLACE) + block
    x = load_values(tl.load(item + VALUES), block, inside, elements, whole, TYPE, ALIGNED, TILING.width)
    if RESIDUAL is not None:
        kept_codes = tl.load(item + KEPT_CODES)
        kept_exponents = pointer(tl.load(item + KEPT_EXPONENTS), tl.int8, False) + block
        kept_exponent = tl.load(kept_exponents, mask=inside, other=0).to(tl.int32)
        code = load_packed(kept_codes, block, inside, RESIDUAL.word_length, TILING.width)
        x += code.to(tl.float32) * power_of_two(kept_exponent)
    bits = bits_of(item, block, SENT, TILING, STOCHASTIC)
    code, exponent, finite = encode_finite(x, bits, FORMAT, STOCHASTIC)
    store_packed(codes, at, inside, code, FORMAT.word_length, TILING.width)
    tl.store(exponents + at, exponent.to(tl.int8), mask=inside)
    if RESIDUAL is not None:
        lost = tl.where(finite, x - code.to(tl.float32) * power_of_two(exponent), 0.0)
        bits = bits_of(item, block, KEPT, TILING, STOCHASTIC)
        code, exponent = encode(lost, largest_bits(lost), bits, 0, RESIDUAL, STOCHASTIC)
        store_packed(kept_codes, block, inside & finite, code, RESIDUAL.word_length, TILING.width)
        tl.store(kept_exponents, exponent.to(tl.int8), mask=inside & finite)


@triton.jit(do_not_specialize=["count", "ranks", "stride", "headroom", "divisor"])
def sum_kernel(
    table,
    codes,
    exponents,
    out_codes,
    out_exponents,
    count: tl.int32,
    ranks: tl.int32,
    stride: tl.int64,
    headroom: tl.int32,
    divisor: tl.float32,
    FORMAT: tl.constexpr,
    TILING: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """Sum the ranks' chunks, ``stride`` bytes apart, at the scale ``2**-headroom``; divide, and round into a chunk."""
    item, block, inside, _, _ = locate_piece(table, count, TILING)
    at = tl.load(item + PLACE) + block
    COUNT: tl.constexpr = TILING.count  # Triton up to 3.7 does not compile an attribute within a tuple
    WIDTH: tl.constexpr = TILING.width
    total = tl.zeros((COUNT, WIDTH), tl.float32)
    finite = inside
    for rank in range(ranks):
        skipped = tl.multiple_of(stride.to(tl.int64) * rank, 16)
        exponent = tl.load(exponents + skipped + at, mask=inside, other=0).to(tl.int32)
        code = load_packed(codes + skipped, at, inside, FORMAT.word_length, TILING.width)
        finite = finite & (exponent != NOT_FINITE)
        total += code.to(tl.float32) * power_of_two(exponent - headroom)
    mean = tl.where(finite, tl.div_rn(total, divisor), float("inf"))
    bits = bits_of(item, block, SUMMED, TILING, STOCHASTIC)
    code, exponent, finite = encode_finite(mean, bits, FORMAT, STOCHASTIC)
    store_packed(out_codes, at, inside, code, FORMAT.word_length, TILING.width)
    tl.store(out_exponents + at, exponent.to(tl.int8), mask=inside)


@triton.jit(do_not_specialize=["count"])
def read_kernel(
    table,
    codes,
    exponents,
    count: tl.int32,
    FORMAT: tl.constexpr,
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILING: tl.constexpr,
):
    """Write the numbers of a chunk to the ``count`` pieces of ``table``."""
    item, block, inside, elements, whole = locate_piece(table, count, TILING)
    at = tl.load(item + PLACE) + block
    exponent = tl.load(exponents + at, mask=inside, other=0).to(tl.int32)
    code = load_packed(codes, at, inside, FORMAT.word_length, TILING.width)
    x = code.to(tl.float32) * power_of_two(exponent)
    nan = tl.full((1, 1), 0x7FC00000, tl.int32).to(tl.float32, bitcast=True)
    x = tl.where(exponent != NOT_FINITE, x, nan)
    store_values(tl.load(item + VALUES), block, inside, elements, whole, x, TYPE, ALIGNED, TILING.width)


class _Kind(NamedTuple):
    """What the pieces of one launch have in common: whether they have residuals, their type and alignment."""

    residual: bool = False
    type: int = FLOAT32.value
    aligned: bool = True


def round_(pieces: Sequence[Piece], chunk: Chunk, word_length: int, stochastic: bool) -> None:
    """See :func:`lowprec_plugin.arithmetic.reference.wire.round_`."""
    kinds = [_kind(piece, piece.residual) for piece in pieces]
    for kind, grid, table, count in _launches(pieces, kinds, [piece.key for piece in pieces], [chunk]):
        residual = RESIDUAL if kind.residual else None
        how = {"RESIDUAL": residual, "TYPE": kind.type, "ALIGNED": kind.aligned, "STOCHASTIC": stochastic}
        round_kernel[grid](table, *chunk, count, FORMAT=_format(word_length), **how, **_OPTIONS)


def sum_(
    pieces: Sequence[Piece], chunks: Sequence[Chunk], out: Chunk, word_length: int, divisor: float, stochastic: bool
) -> None:
    """See :func:`lowprec_plugin.arithmetic.reference.wire.sum_`; the chunks must lie at equal distances."""
    headroom = (len(chunks) - 1).bit_length()
    starts = [chunk.codes.data_ptr() for chunk in chunks]
    kinds, keys = [_Kind()] * len(pieces), [piece.sum_key for piece in pieces]
    for _, grid, table, count in _launches(pieces, kinds, keys, [*chunks, out]):
        sum_kernel[grid](
            table,
            *chunks[0],
            *out,
            count,
            len(chunks),
            starts[1] - starts[0] if len(chunks) > 1 else 0,
            headroom,
            divisor * 2.0**-headroom,
            FORMAT=_format(word_length),
            STOCHASTIC=stochastic,
            **_OPTIONS,
        )


def read_(pieces: Sequence[Piece], chunk: Chunk, word_length: int) -> None:
    """See :func:`lowprec_plugin.arithmetic.reference.wire.read_`; ``values`` in float32 or bfloat16."""
    kinds = [_kind(piece, None) for piece in pieces]
    for kind, grid, table, count in _launches(pieces, kinds, [0] * len(pieces), [chunk]):
        how = {"TYPE": kind.type, "ALIGNED": kind.aligned}
        read_kernel[grid](table, *chunk, count, FORMAT=_format(word_length), **how, **_OPTIONS)


def _format(word_length: int) -> CompiledFormat:
    return compiled(FixedPointFormat(word_length, block_size=BLOCK))


def _kind(piece: Piece, residual: Blocks | None) -> _Kind:
    return _Kind(residual is not None, FLOAT_TYPES[piece.values.dtype], on_boundaries([piece.values]))


def _launches(
    pieces: Sequence[Piece], kinds: Sequence[_Kind], keys: Sequence[int], chunks: Sequence[Chunk]
) -> Iterator[tuple[_Kind, tuple[int], Tensor, int]]:
    """The launches of a call: the kind of their pieces, the grid, the table and its rows."""
    device = chunks[0].codes.device
    if knobs.runtime.interpret and device.type != "cpu":
        raise ValueError("Triton's interpreter cannot follow addresses on a GPU: move the tensors to the CPU")
    planes = [piece.residual.codes for piece in pieces if piece.residual is not None]
    if not on_boundaries([*planes, *(chunk.codes for chunk in chunks)]):
        raise ValueError("codes must start at a multiple of 16 bytes: rows of a buffer of chunk_bytes do")
    launches: dict[_Kind, list[list[int]]] = defaultdict(list)
    programs: dict[_Kind, int] = defaultdict(int)
    for piece, kind, key in zip(pieces, kinds, keys, strict=True):
        if piece.blocks:
            launches[kind].append([programs[kind], *_describe(piece, key)])
            programs[kind] += -(-piece.blocks // _TILING.count)
    if not launches:
        return
    rows = torch.tensor([row for members in launches.values() for row in members], pin_memory=device.type != "cpu")
    tables = rows.to(device, non_blocking=True).split([len(members) for members in launches.values()])
    with torch.accelerator.device_index(device.index):
        for kind, table in zip(launches, tables, strict=True):
            yield kind, (programs[kind],), table, len(table)


def _describe(piece: Piece, key: int) -> list[int]:
    """The columns of the table behind the first program."""
    row = [piece.values.data_ptr(), piece.values.numel(), piece.first_block, piece.place, signed(key)]
    if piece.residual is None:
        return [*row, 0, 0]
    assert piece.residual.exponents is not None
    return [*row, piece.residual.codes.data_ptr(), piece.residual.exponents.data_ptr()]
