"""The planes that hold a fixed-point tensor's codes and exponents."""

from __future__ import annotations

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
    rows, row_length = rows_of(shape)
    codes = torch.empty(shape, dtype=torch.int8 if format.container_bytes == 1 else torch.int16, device=device)
    low = torch.empty(shape, dtype=torch.uint8, device=device) if format.container_bytes == 3 else None
    if not format.dynamic:
        return Blocks(codes, low, None)
    count = format.blocks_per_row(row_length)
    return Blocks(codes, low, torch.empty((rows, count), dtype=torch.int8, device=device))


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
    word_length = format.word_length
    if isinstance(codes, Tensor):
        shape = codes.shape
        if (
            codes.dtype is (torch.int8 if word_length <= 8 else torch.int16)
            and codes.layout is torch.strided
            and codes.is_contiguous()
            and (low is None if word_length <= 16 else _fits(low, torch.uint8, shape, codes))
            and (
                exponents is None
                if format.fraction_length is not None
                else _fits(exponents, torch.int8, _exponents_shape(shape, codes, format), codes)
            )
        ):
            return
    raise ValueError(_misfit(blocks, format))


def _exponents_shape(shape: torch.Size, codes: Tensor, format: FixedPointFormat) -> tuple[int, int]:
    rows = shape[0] if shape else 1
    # What rows_of gives, in a third of the time; it cannot be derived from the size where there are no rows.
    row_length = codes.numel() // rows if rows else rows_of(shape)[1]
    return rows, -(-row_length // format.block_size)


def _fits(plane: object, dtype: torch.dtype, shape: Sequence[int], codes: Tensor) -> bool:
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
    codes, low, exponents = blocks
    if not isinstance(codes, Tensor):
        return f"the codes are {_said(codes)}, and {format} needs a tensor"
    of_exponents = _exponents_shape(codes.shape, codes, format)
    for name, plane, dtype, shape in (
        ("codes", codes, torch.int8 if format.container_bytes == 1 else torch.int16, codes.shape),
        ("lower codes", low, torch.uint8 if format.container_bytes == 3 else None, codes.shape),
        ("exponents", exponents, torch.int8 if format.dynamic else None, of_exponents),
    ):
        if dtype is None and plane is not None:
            return f"the {name} are {_said(plane)}, and {format} has none"
        if dtype is not None and not _fits(plane, dtype, shape, codes):
            needed = f"contiguous {_name(dtype)} of shape {tuple(shape)} on {codes.device}"
            return f"the {name} are {_said(plane)}, and {format} needs {needed}"
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
