"""Fixed-point number formats.

A stored number is ``code * 2**exponent`` with ``code`` a two's-complement integer of ``word_length`` bits.
There are two kinds of format:

* **static**, written ``<IL,FL>``: one radix point for the whole tensor, ``exponent = -FL``, and
  ``word_length = IL + FL`` with the sign bit counted in ``IL`` (Gupta et al. 2015, section 3);
* **dynamic**, written ``fixed16``: every block of up to ``block_size`` consecutive elements has a radix point of
  its own, always the smallest exponent that holds the block's largest magnitude.

Blocks partition each *row* (index of dimension 0) separately and never cross into the next row, so a tensor that is
sharded along dimension 0 has the same blocks as the whole tensor. A one-dimensional tensor therefore has blocks of
one element: see ``docs/decisions/0002-blocks-within-rows.md``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowprec_plugin.text.option_error import Option, OptionError

MIN_WORD_LENGTH = 2
MAX_WORD_LENGTH = 24
#: Bounds of a block's exponent. With them every power of two that a conversion multiplies by, 2**(16 - exponent)
#: included, is a normal float32, and so is every non-zero stored number of up to 24 bits.
MIN_EXPONENT = -110
MAX_EXPONENT = 126
#: The exponent of a gradient's block that holds a NaN or an infinity; its codes are 0. No number has it.
NOT_FINITE = -128
BLOCK_SIZES = (16, 32, 64, 128, 256, 512, 1024)

_STATIC = re.compile(r"<\s*(-?\d+)\s*,\s*(-?\d+)\s*>")
_DYNAMIC = re.compile(r"fixed(\d+)(?::(\d+))?(\^2)?")


@dataclass(frozen=True)
class FixedPointFormat:
    """How numbers are stored: ``value = code * 2**exponent``, saturating.

    Args:
        word_length: bits of a code, 2 to 24, the sign included. Codes of 2 to 8 bits are held in one byte,
            9 to 16 in two, 17 to 24 in three.
        fraction_length: bits behind the radix point of a static format; ``None`` for a dynamic one.
        block_size: elements that share one exponent in a dynamic format: a power of two, 16 to 1024.
        squared: the codes hold the square root of a value that is never negative, and no value other than zero
            gets code 0. For second moments: Adam divides by this root. Dynamic formats only.

    Raises:
        ValueError: for a length that is not an integer or outside its limits.
    """

    word_length: int
    fraction_length: int | None = None
    block_size: int = 256
    squared: bool = False

    def __post_init__(self) -> None:
        check_word_length(self.word_length)
        check_kind(self.squared, bool, "squared")
        check_integer(self.block_size, "block_size")
        if self.block_size not in BLOCK_SIZES:
            raise OptionError(Option.given("block_size", self.block_size), f" is not one of {BLOCK_SIZES}")
        if self.fraction_length is not None:
            check_integer(self.fraction_length, "fraction_length")
            if not MIN_EXPONENT <= -self.fraction_length <= self.max_exponent:
                raise OptionError(
                    Option.given("fraction_length", self.fraction_length),
                    f" puts the radix point out of float32's reach; choose {-self.max_exponent} to {-MIN_EXPONENT}",
                )
            if self.squared:
                raise OptionError("a squared format is dynamic: leave ", Option.given("fraction_length", None))

    @classmethod
    def parse(cls, text: str | FixedPointFormat) -> FixedPointFormat:
        """Read a format as ``str`` writes it.

        ``"<4,12>"`` is static with ``IL = 4`` and ``FL = 12``; ``"fixed16"`` is dynamic with 16-bit codes;
        ``"fixed16:128"`` has blocks of 128; ``"fixed8^2"`` is squared.

        Raises:
            ValueError: if ``text`` is none of these.
        """
        if isinstance(text, FixedPointFormat):
            return text
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is not a fixed-point format; write its text, such as 'fixed16'")
        if match := _STATIC.fullmatch(text.strip()):
            integer_length, fraction_length = (int(part) for part in match.groups())
            return cls(integer_length + fraction_length, fraction_length)
        if match := _DYNAMIC.fullmatch(text.strip()):
            word_length, block_size, squared = match.groups()
            return cls(int(word_length), None, int(block_size or 256), squared is not None)
        raise ValueError(f"{text!r} is not a fixed-point format; write '<4,12>' (static) or 'fixed16' (dynamic)")

    def __str__(self) -> str:
        if self.fraction_length is not None:
            return f"<{self.integer_length},{self.fraction_length}>"
        blocks = "" if self.block_size == 256 else f":{self.block_size}"
        return f"fixed{self.word_length}{blocks}{'^2' if self.squared else ''}"

    @property
    def dynamic(self) -> bool:
        """Whether every block has an exponent of its own."""
        return self.fraction_length is None

    @property
    def integer_length(self) -> int | None:
        """Bits before the radix point, the sign included; ``None`` for a dynamic format."""
        return None if self.fraction_length is None else self.word_length - self.fraction_length

    @property
    def static_exponent(self) -> int:
        """The exponent of every code of a static format."""
        assert self.fraction_length is not None, "a dynamic format has no single exponent"
        return -self.fraction_length

    @property
    def max_exponent(self) -> int:
        """The largest exponent of a block: with it, no code stands for more than float32's largest number."""
        return min(MAX_EXPONENT, 129 - self.word_length)

    @property
    def max_code(self) -> int:
        """The largest code, ``2**(word_length - 1) - 1``."""
        return (1 << (self.word_length - 1)) - 1

    @property
    def min_code(self) -> int:
        """The smallest code: two's complement's own in a static format, ``-max_code`` in a dynamic one.

        A dynamic block is symmetric, so that negation is exact.
        """
        return -self.max_code if self.dynamic else -self.max_code - 1

    @property
    def container_bytes(self) -> int:
        """Bytes that hold one code: 1, 2 or 3."""
        return (self.word_length + 7) // 8

    def blocks_per_row(self, row_length: int) -> int:
        """Exponents that a row of ``row_length`` elements needs; 0 for a static format."""
        return -(-row_length // self.block_size) if self.dynamic else 0

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes that a tensor of ``shape`` occupies in this format, exponents included."""
        rows, row_length = rows_of(shape)
        return rows * (row_length * self.container_bytes + self.blocks_per_row(row_length))

    def holds(self, other: FixedPointFormat) -> bool:
        """Whether every tensor stored in ``other`` is exact in this format.

        But for exponents that overflow, and a static format's smallest code, which a dynamic one of as many bits holds
        only where the other codes of its block are even.
        """
        if self.fraction_length is None or other.fraction_length is None:
            return self.dynamic and self.word_length >= other.word_length and self.block_size == other.block_size
        spare = self.fraction_length - other.fraction_length
        return 0 <= spare <= self.word_length - other.word_length

    def as_squared(self) -> FixedPointFormat:
        """The same format for values that are stored as their square root."""
        return replace(self, squared=True)


def check_integer(value: object, name: str, least: int | None = None) -> None:
    """Raise ``ValueError`` unless ``value`` is an ``int``; ``True`` is none, nor is ``16.0`` or ``"16"``.

    Or if it is below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(Option.given(name, value), " is not an integer")
    if least is not None and value < least:
        raise OptionError(Option.given(name, value), f" must be at least {least}")


def check_number(value: object, name: str, low: float, high: float) -> None:
    """Raise ``ValueError`` unless ``value`` is a number in ``[low, high)``; ``True`` and NaN are none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
        raise OptionError(Option.given(name, value), f" is not in [{low}, {high:g})")


def check_kind(value: object, kind: type, name: str) -> None:
    """Raise ``ValueError`` unless ``value`` is an instance of ``kind``."""
    if not isinstance(value, kind):
        raise OptionError(Option.given(name, value), f" is of type {type(value).__name__}, not {kind.__name__}")


def check_word_length(word_length: int, name: str = "word_length") -> None:
    """Raise ``ValueError`` unless ``word_length`` is an integer of 2 to 24 bits."""
    check_integer(word_length, name)
    if not MIN_WORD_LENGTH <= word_length <= MAX_WORD_LENGTH:
        reason = "float32 itself has 24 significant bits" if word_length > MAX_WORD_LENGTH else "a sign and one bit"
        raise OptionError(
            Option.given(name, word_length),
            f" is not supported: choose {MIN_WORD_LENGTH} to {MAX_WORD_LENGTH} bits ({reason})",
        )


def rows_of(shape: Sequence[int]) -> tuple[int, int]:
    """Rows of dimension 0 and the elements of each; a scalar is one row of one element."""
    if len(shape) == 0:
        return 1, 1
    return shape[0], math.prod(shape[1:])
