"""The planes that hold a fixed-point tensor's codes and exponents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lowprec_plugin.formats import MIN_EXPONENT, FixedPointFormat, rows_of


class Blocks(NamedTuple):
    """Codes and exponents of one tensor in one :class:`~lowprec_plugin.formats.FixedPointFormat`.

    Attributes:
        codes: contiguous, of the tensor's shape. int8 for word lengths 2 to 8 and int16 for 9 to 16, right-aligned.
            For 17 to 24 bits the upper 16 of a code that is left-aligned in 24 bits, so that widening a 16-bit tensor
            appends the other plane and moves nothing.
        low: ``None`` up to 16 bits; else uint8 of the tensor's shape, the lower 8 of those 24 bits.
        exponents: int8 of shape ``(rows, blocks per row)``; ``None`` for a static format.
    """

    codes: Tensor
    low: Tensor | None
    exponents: Tensor | None

    @property
    def planes(self) -> list[Tensor]:
        """The tensors that exist."""
        return [plane for plane in self if plane is not None]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(plane.nbytes for plane in self.planes)

    def copy_(self, other: Blocks) -> None:
        """Overwrite every plane with ``other``'s, which must have the same format."""
        for plane, source in zip(self.planes, other.planes, strict=True):
            plane.copy_(source)

    def map(self, function: Callable[[Tensor], Tensor]) -> Blocks:
        """``function`` of every plane that exists."""
        low = None if self.low is None else function(self.low)
        return Blocks(function(self.codes), low, None if self.exponents is None else function(self.exponents))


@dataclass
class Shared:
    """What all windows on the same codes have in common.

    Attributes:
        first_row: where they start in the whole tensor; not known yet if not ``placed``.
        roundings: in place so far, which key the random bits of the next.
    """

    first_row: int
    roundings: int = 0
    placed: bool = True


def empty_blocks(shape: torch.Size | tuple[int, ...], format: FixedPointFormat, device: torch.device | None) -> Blocks:
    """Blocks for a tensor of ``shape``, holding zeros."""
    rows, row_length = rows_of(shape)
    dtype = torch.int8 if format.container_bytes == 1 else torch.int16
    exponents = None
    if format.dynamic:
        exponents = torch.full((rows, format.blocks_per_row(row_length)), MIN_EXPONENT, dtype=torch.int8, device=device)
    low = torch.zeros(shape, dtype=torch.uint8, device=device) if format.container_bytes == 3 else None
    return Blocks(torch.zeros(shape, dtype=dtype, device=device), low, exponents)


def pack(code: Tensor, format: FixedPointFormat) -> tuple[Tensor, Tensor | None]:
    """Integer codes as the planes that hold them."""
    if format.container_bytes < 3:
        return code.to(torch.int8 if format.container_bytes == 1 else torch.int16), None
    wide = code.to(torch.int32) << (24 - format.word_length)
    return (wide >> 8).to(torch.int16), (wide & 0xFF).to(torch.uint8)


def unpack(blocks: Blocks, format: FixedPointFormat) -> Tensor:
    """The codes as int32, of the tensor's shape."""
    code = blocks.codes.to(torch.int32)
    if blocks.low is None:
        return code
    return ((code << 8) | blocks.low.to(torch.int32)) >> (24 - format.word_length)
