"""How a tensor is cut into tiles: a tile is a matrix whose every row is one block.

A row of a tensor that is longer than the block size is cut into blocks, the last one shorter where it does not
divide; a shorter row is one block, and the tile is as narrow as the next power of two allows. So every program works
on about as many elements, whether 8 blocks of 256 or 2,048 elements of a vector.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowprec_plugin.arithmetic.random_bits import GROUP, padded_row
from lowprec_plugin.formats import rows_of

#: Threads that run in step, of the GPUs that torch is built for.
WARP = 64 if torch.version.hip else 32


@dataclass(frozen=True)
class Tiling:
    """What a kernel is compiled for of a tensor's shape.

    Attributes:
        width: elements of a tile's row.
        count: rows of a tile.
        flat: rows are whole multiples of ``width``, so that blocks follow each other in memory without a gap.
        aligned: every row starts at a multiple of 128 bits; for an update, every plane does too.
        wide: the counters of random words do not fit 32 bits. Where they do, so do the indices of blocks.
    """

    width: int
    count: int
    flat: bool
    aligned: bool
    wide: bool

    @property
    def per_thread(self) -> int:
        """Elements per thread: 128 bits of the narrowest codes and one group of random words.

        Fewer where every element is a block, or is read, by itself: 16 of those do not fit the registers.
        """
        return 16 if self.aligned and self.width >= 16 else 4

    def filling(self, warps: int, warp: int = WARP) -> Tiling:
        """The same with as many blocks as ``warps`` warps are for, at least one."""
        return replace(self, count=max(self.per_thread * warp * warps // self.width, 1))

    def options(self, warp: int = WARP) -> dict[str, object]:
        """How to compile: without fused multiply-add, which rounds once where the laws round twice."""
        return {"num_warps": max(self.width * self.count // (self.per_thread * warp), 1), "enable_fp_fusion": False}


@lru_cache(maxsize=4096)  # asked again in every step
def tiling_of(shape: tuple[int, ...], block_size: int, first_row: int, warps: int) -> tuple[Tiling, int]:
    """The tiling of a tensor whose first row is the whole tensor's ``first_row``, and how many programs it takes.

    A tile is enough for ``warps`` warps, or one block if that is more.
    """
    rows, row_length = rows_of(shape)
    width = min(block_size, triton.next_power_of_2(row_length))
    flat = row_length % width == 0
    wide = (first_row + rows) * padded_row(row_length) // 2 > 2**32
    block = Tiling(width, 1, flat, aligned=flat or row_length % GROUP == 0, wide=wide)
    tiling = block.filling(warps)
    return tiling, -(-rows * -(-row_length // width) // tiling.count)


def on_boundaries(tensors: Iterable[Tensor | None]) -> bool:
    """Whether every tensor's memory starts at a multiple of 128 bits."""
    return all(tensor is None or tensor.data_ptr() % 16 == 0 for tensor in tensors)


def signed(key: int) -> int:
    """A 64-bit key as the int64 of the same bits."""
    return key - 2**64 if key >= 2**63 else key


@triton.jit
def locate(program, rows, row_length, first_row, TILING: tl.constexpr):
    """Where one program's tile lies.

    Returns:
        the offsets of its elements in the tensor, int64 of shape ``(count, width)``; which of them exist; the indices
        of its blocks and which of those exist, of shape ``(count, 1)``; and the counter of every block's first random
        word.
    """
    WIDTH: tl.constexpr = TILING.width
    if TILING.aligned and not TILING.flat:
        row_length = row_length // 16 * 16  # changes nothing, and tells the compiler
    half_row = (row_length + 15) // 16 * 8
    per_row = (row_length + WIDTH - 1) // WIDTH
    column = tl.arange(0, WIDTH)[None, :]
    block = program.to(tl.int64) * TILING.count + tl.arange(0, TILING.count)[:, None]
    inside = block < rows * per_row
    if TILING.flat:
        start = block * WIDTH
        mask = inside
        counter = first_row * half_row + block * max(WIDTH // 2, 8)
    else:
        # A 64-bit division takes a hundred instructions.
        index: tl.constexpr = tl.int64 if TILING.wide else tl.int32
        row = (block.to(index) // per_row.to(index)).to(tl.int64)
        left = (block - row * per_row) * WIDTH
        start = row * row_length + left
        mask = inside & (column < row_length - left)
        counter = (first_row + row) * half_row + left // 2
    if not TILING.wide:
        counter = counter.to(tl.uint32)
    return start + column, mask, block, inside, counter
