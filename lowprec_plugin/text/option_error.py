"""Errors that name options as data, so that Python and a command line can each word them in their own form.

::

    raise OptionError(Option.given("seeds", seeds), " must be at least 1")

reads ``seeds=0 must be at least 1`` in Python. A command line whose option ``seeds`` is has it as ``--seeds=0``.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Self


class Option(NamedTuple):
    """An option in a message, with a value or alone.

    Attributes:
        name: of the argument.
        value: as it is written behind the name; empty: the option alone.
    """

    name: str
    value: str = ""

    @classmethod
    def given(cls, name: str, value: object) -> Self:
        """An option with the value that it was given, as Python writes it."""
        return cls(name, repr(value))

    def __str__(self) -> str:
        """As Python has it: ``seeds=0``, and ``seeds=`` alone."""
        return f"{self.name}={self.value}"

    def on_command_line(self) -> str:
        """As a command line has it: ``--seeds=0``, and ``--seeds`` alone."""
        return f"--{self}" if self.value else f"--{self.name}"


class OptionError(ValueError):
    """A value of an option that is refused, or an option that is missing or too many.

    Args:
        parts: the message: text, and the options in it.
    """

    def __init__(self, *parts: str | Option) -> None:
        super().__init__(*parts)
        self.parts = parts

    @property
    def options(self) -> tuple[Option, ...]:
        """Those that the message names, in its order."""
        return tuple(part for part in self.parts if isinstance(part, Option))

    def __str__(self) -> str:
        return "".join(map(str, self.parts))

    def on_command_line(self, names: Container[str]) -> str:
        """The message, with the options called ``names`` as a command line has them."""
        return "".join(
            part.on_command_line() if isinstance(part, Option) and part.name in names else str(part)
            for part in self.parts
        )


def parts_of(error: ValueError) -> tuple[str | Option, ...]:
    """What ``error`` says, to be said in another message: the options in it stay data."""
    return error.parts if isinstance(error, OptionError) else (str(error),)
