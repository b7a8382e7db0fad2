"""Whether a tensor that was read from a file is one of its format, and the one that was written.

torch checks nothing of what it reads: a bit that flipped on a disk gives other weights without a word. A pickled
fixed-point tensor therefore holds a digest of itself, which is checked when it is put together again.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowprec_plugin.arithmetic.blocks import Blocks, check_blocks, check_window
from lowprec_plugin.arithmetic.ops import check_rounding
from lowprec_plugin.formats import MIN_EXPONENT, NOT_FINITE, FixedPointFormat, check_integer, check_kind

#: Rows of a whole tensor, beyond which places of elements would no longer fit 64 bits.
MAX_ROWS = 1 << 48


class Pickled(NamedTuple):
    """All that a pickle holds of a tensor, in its order. What has a default, earlier versions did not write.

    Attributes:
        codes, low, exponents: its planes.
        geometry: shape, strides and offset, if it is a window on these.
        parameter: whether it is a ``torch.nn.Parameter``.
        written: the :func:`digest` of the planes and of what stands between them and this.
        hung: the attributes that a user has hung on it.
    """

    codes: Tensor
    low: Tensor | None
    exponents: Tensor | None
    format: str
    dtype: torch.dtype
    rounding: str
    stream: int
    label: str
    first_row: int
    roundings: int
    geometry: tuple[Any, Any, Any] | None
    parameter: bool
    requires_grad: bool
    whole_rows: int | None = None
    written: str | None = None
    hung: dict[str, Any] | None = None

    @property
    def blocks(self) -> Blocks:
        """The planes."""
        return Blocks(*self[:3])

    def digest(self) -> str | None:
        """What ``written`` has to be."""
        return digest(self.blocks, *self[3:-2])


def check_read(given: Pickled, *, marked: bool = False) -> FixedPointFormat:
    """Check all that a pickle holds of a tensor, of which nothing is trusted.

    The planes are held against the format, the window against the codes, every number against its range, and all of it
    against the digest of when it was pickled, if there is one. Blocks of a gradient may be ``marked`` as not finite.

    Returns:
        the format.

    Raises:
        ValueError: for anything that is not as it was written, or cannot have been.
    """
    try:
        format, blocks = FixedPointFormat.parse(given.format), given.blocks
        check_blocks(blocks, format)
        check_facts(
            given.dtype, given.rounding, given.label, given.first_row,
            stream=given.stream, roundings=given.roundings, whole_rows=given.whole_rows or 0,
        )  # fmt: skip
        check_kind(given.parameter, bool, "parameter")
        check_kind(given.requires_grad, bool, "requires_grad")
        if given.geometry is not None:
            check_window(*given.geometry, elements=blocks.codes.numel())
        exponents = blocks.exponents
        if marked and exponents is not None:
            exponents = exponents.masked_fill(exponents == NOT_FINITE, MIN_EXPONENT)
        check_numbers(blocks._replace(exponents=exponents), format)
        if given.written is not None and given.digest() not in (given.written, None):
            raise ValueError(f"it is not what was written, whose digest is {given.written}")
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:  # of planes that are odd classes too
        raise ValueError(f"tensor {given.label!r} in a file is damaged, or not this package's own: {error}") from error
    return format


def check_facts(dtype: object, rounding: object, label: object, first_row: object, **integers: object) -> None:
    """Check what is stored with a tensor's planes; ``integers``: others that are no less than 0, by their names.

    Raises:
        ValueError: naming the one that is wrong.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is not a floating-point dtype, such as torch.float32")
    check_rounding(rounding)  # type: ignore[arg-type]  # which is what is checked
    check_kind(label, str, "label")
    for name, value in {"first_row": first_row, **integers}.items():
        check_integer(value, name)
        assert isinstance(value, int)
        if value < 0:
            raise ValueError(f"{name}={value} is negative")
    assert isinstance(first_row, int)
    if first_row >= MAX_ROWS:
        raise ValueError(f"first_row={first_row} is beyond the 2**48 rows that a tensor may have")


def check_numbers(blocks: Blocks, format: FixedPointFormat) -> None:
    """Check that codes and exponents are within the range of ``format``. The planes are those of ``format`` already.

    Reads every number once, and waits for the device. A tensor without values (on the meta device, or a fake one)
    passes.

    Raises:
        ValueError: naming the plane, the number and its limits.
    """
    codes, low, exponents = blocks
    if not _has_values(codes):
        return
    if exponents is not None:
        _check_range("an exponent", exponents, MIN_EXPONENT, format.max_exponent, format)
    lowest = 0 if format.squared else format.min_code
    if low is None:
        _check_range("a code", codes, lowest, format.max_code, format)
        return
    # Left-aligned in 24 bits: the upper plane may take any value, and the bits that are left over are zero.
    spare = 24 - format.word_length
    if bool((low & ((1 << spare) - 1)).any()):
        raise ValueError(f"a code has bits below the {format.word_length} of {format}")
    upper_lowest = lowest >> (format.word_length - 16)
    _check_range("the upper part of a code", codes, upper_lowest, 32767, format)
    if format.dynamic and not format.squared and bool(((codes == -32768) & (low == 0)).any()):
        raise ValueError(f"a code is {-format.max_code - 1}, and {format} has {lowest} to {format.max_code}")


def _check_range(what: str, plane: Tensor, lowest: int, highest: int, format: FixedPointFormat) -> None:
    if plane.numel() == 0:
        return
    least, most = (int(end) for end in plane.aminmax())
    if least < lowest or most > highest:
        raise ValueError(f"{what} is {least if least < lowest else most}, and {format} has {lowest} to {highest}")


def digest(blocks: Blocks, *facts: object) -> str | None:
    """A checksum of all planes and of the ``repr`` of ``facts``: CRC-32 in eight hexadecimal digits.

    It tells damage, every single bit and every run of up to 32, and no intent. ``None`` for planes without values.
    """
    if not _has_values(blocks.codes):
        return None
    crc = zlib.crc32(repr(facts).encode())
    for plane in blocks.planes:
        crc = zlib.crc32(plane.detach().cpu().numpy().data, crc)  # on the CPU no copy
    return f"{crc:08x}"


def _has_values(plane: Tensor) -> bool:
    return type(plane.detach()) is Tensor and not plane.is_meta  # detached, a parameter is a plain tensor too
