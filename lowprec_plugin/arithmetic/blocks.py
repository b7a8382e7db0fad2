"""The planes that hold a fixed-point tensor's codes and exponents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def empty_blocks(shape: torch.Size | tuple[int, ...], format: FixedPointFormat, device: torch.device | None) -> Blocks:
    """Blocks for a tensor of ``shape``, holding zeros."""
    blocks = unwritten_blocks(shape, format, device)
    blocks.codes.zero_()
    if blocks.low is not None:
        blocks.low.zero_()
    if blocks.exponents is not None:
        blocks.exponents.fill_(MIN_EXPONENT)
    return blocks


def unwritten_blocks(
    shape: torch.Size | tuple[int, ...], format: FixedPointFormat, device: torch.device | None
) -> Blocks:
    """Blocks for a tensor of ``shape``, holding what was in memory: for whoever writes all of them next."""
    of_codes, of_low, of_exponents = _dtypes(format)
    low = None if of_low is None else torch.empty(shape, dtype=of_low, device=device)
    exponents = None
    if of_exponents is not None:
        of_shape = _exponents_shape(shape, math.prod(shape), format)
        exponents = torch.empty(of_shape, dtype=of_exponents, device=device)
    return Blocks(torch.empty(shape, dtype=of_codes, device=device), low, exponents)


def check_blocks(blocks: Blocks, format: FixedPointFormat) -> None:
    """Check that planes are what kernels take them for: kernels get addresses, and believe the format.

    Costs about two microseconds: no number is read (:func:`lowprec_plugin.tensor.integrity.check_numbers` does).

    Raises:
        ValueError: naming the plane, what it is and what ``format`` needs, unless all planes are dense, contiguous and
            on one device, with the dtypes and shapes that :class:`Blocks` states.
    """
    if type(format) is not FixedPointFormat:
        raise ValueError(f"format={format!r} is not a FixedPointFormat")
    codes, low, exponents = blocks
    if not isinstance(codes, Tensor):
        raise ValueError(f"the codes are {_said(codes)}, and {format} needs a tensor")
    shape, (of_codes, of_low, of_exponents) = codes.shape, _dtypes(format)
    of_shape = None if of_exponents is None else _exponents_shape(shape, codes.numel(), format)
    if not (
        codes.dtype is of_codes
        and codes.layout is torch.strided
        and codes.is_contiguous()
        and _fits(low, of_low, shape, codes)
        and _fits(exponents, of_exponents, of_shape, codes)
    ):
        raise ValueError(_misfit(blocks, format))


def _dtypes(format: FixedPointFormat) -> tuple[torch.dtype, torch.dtype | None, torch.dtype | None]:
    """Of codes, lower codes and exponents; ``None`` where ``format`` has none."""
    word_length = format.word_length
    return (
        torch.int8 if word_length <= 8 else torch.int16,
        None if word_length <= 16 else torch.uint8,
        None if format.fraction_length is not None else torch.int8,
    )


def _exponents_shape(shape: Sequence[int], elements: int, format: FixedPointFormat) -> tuple[int, int]:
    rows = shape[0] if shape else 1
    # What rows_of gives, in a third of the time; it cannot be derived from the size where there are no rows.
    row_length = elements // rows if rows else rows_of(shape)[1]
    return rows, -(-row_length // format.block_size)


def _fits(plane: object, dtype: torch.dtype | None, shape: Sequence[int] | None, codes: Tensor) -> bool:
    """Whether a plane beside ``codes`` is of this kind; not there, if that is ``None``."""
    if dtype is None:
        return plane is None
    return (
        isinstance(plane, Tensor)
        and plane.dtype is dtype
        and plane.shape == shape
        and (plane.is_cpu if codes.is_cpu else plane.device == codes.device)  # the first is faster
        and plane.layout is torch.strided
        and plane.is_contiguous()
    )


def _misfit(blocks: Blocks, format: FixedPointFormat) -> str:
    """Which plane does not fit, and how."""
    codes = blocks.codes
    shapes = codes.shape, codes.shape, _exponents_shape(codes.shape, codes.numel(), format)
    names = "codes", "lower codes", "exponents"
    for name, plane, dtype, shape in zip(names, blocks, _dtypes(format), shapes, strict=True):
        if not _fits(plane, dtype, shape, codes):
            needed = "has none"
            if dtype is not None:
                needed = f"needs contiguous {_name(dtype)} of shape {tuple(shape)} on {codes.device}"
            return f"the {name} are {_said(plane)}, and {format} {needed}"
    raise AssertionError("every plane fits")


def _said(plane: object) -> str:
    if not isinstance(plane, Tensor):
        return "missing" if plane is None else repr(type(plane).__name__)
    strided = plane.layout is torch.strided
    order = "" if strided and plane.is_contiguous() else ", not contiguous" if strided else f", {_name(plane.layout)}"
    return f"{_name(plane.dtype)} of shape {tuple(plane.shape)} on {plane.device}{order}"


def _name(what: object) -> str:
    return str(what).removeprefix("torch.")


def check_window(size: Sequence[int], stride: Sequence[int], offset: int, elements: int) -> None:
    """Check that a window of this geometry, in elements, lies inside ``elements`` codes.

    Raises:
        ValueError: if it does not.
        TypeError: for anything but integers.
    """
    sound = len(size) == len(stride) and offset >= 0 and all(each >= 0 for each in (*size, *stride))
    empty = sound and any(each == 0 for each in size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if sound else 0
    if not sound or (last >= elements and not empty):
        raise ValueError(
            f"a window of size {tuple(size)}, strides {tuple(stride)} and offset {offset} reaches outside of the "
            f"{elements} codes it is a window on"
        )


def to_planes(code: Tensor, format: FixedPointFormat) -> tuple[Tensor, Tensor | None]:
    """Integer codes as the planes that hold them."""
    of_codes, of_low, _ = _dtypes(format)
    if of_low is None:
        return code.to(of_codes), None
    wide = code.to(torch.int32) << (24 - format.word_length)
    return (wide >> 8).to(of_codes), (wide & 0xFF).to(of_low)


def from_planes(blocks: Blocks, format: FixedPointFormat) -> Tensor:
    """The codes as int32, of the tensor's shape."""
    code = blocks.codes.to(torch.int32)
    if blocks.low is None:
        return code
    return ((code << 8) | blocks.low.to(torch.int32)) >> (24 - format.word_length)
