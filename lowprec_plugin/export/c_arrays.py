"""Integer arrays in C, and the names they have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from lowprec_plugin.export.integers import Words
from lowprec_plugin.text.files import path_of
from lowprec_plugin.text.option_error import Option, OptionError

#: What a header of ours defines, at the beginning of a line.
_DEFINED = re.compile(r"^(?:#define (\w+)|(?:static|typedef|template) .*?(\w+)[\[(;])", re.MULTILINE)


def identifier(path: str | Path) -> str:
    """The prefix of all names in a file: its own name.

    Raises:
        ValueError: if that is no C identifier, or ``path`` not the path of a file.
    """
    stem = path_of(path).stem
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", stem):
        raise ValueError(f"{Path(path).name!r} is where the names in it come from, and {stem!r} is no C identifier")
    return stem


def names_in_c(prefix: str, names: Iterable[str]) -> dict[str, str]:
    """Names of a state dict as C identifiers.

    Raises:
        ValueError: if two become the same, or one is not of letters, digits, ``_``, ``-`` and ``.``.
    """
    found: dict[str, str] = {}
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise OptionError(
                f"{name!r} is not of letters, digits, '_', '-' and '.' alone: rename it, or ",
                Option.given("leave_out", [name]),
            )
        found[name] = f"{prefix}_{re.sub(r'[^A-Za-z0-9]', '_', name)}"
    for name, made in found.items():
        twins = [other for other, also in found.items() if also.upper() == made.upper()]  # as constants are written
        if len(twins) > 1:
            raise OptionError(
                f"{twins[0]!r} and {twins[1]!r} are both {made!r} in C, where constants are in capitals: rename one, "
                "or ",
                Option.given("leave_out", [name]),
            )
    return found


def check_distinct(text: str) -> None:
    """Refuse a header that defines a name twice: a tensor's may be that of a function, or of another's constants.

    Raises:
        ValueError: naming it.
    """
    found = Counter(define or other for define, other in _DEFINED.findall(text))
    for name, times in found.items():
        if times > 1:
            raise ValueError(
                f"{name!r} would be defined {times} times, made up of the file's name and a tensor's: rename one, or "
                "leave the tensor out with leave_out"
            )


def in_comment(name: str) -> str:
    """A module's name, which may be any text, as it can stand in a comment."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def array(name: str, type: str, values: Iterable[int], count: int) -> str:
    """A definition of ``count`` integers."""
    return f"static const {type} {name}[{count}] = {{\n{_lines(values)}\n}};"


def constants(prefix: str, values: dict[str, int]) -> str:
    """One ``#define`` a line. A negative number is in brackets."""
    return "\n".join(
        f"#define {prefix.upper()}_{key} {value if value >= 0 else f'({value})'}" for key, value in values.items()
    )


def shape_text(shape: Iterable[int]) -> str:
    """``8 x 1 x 5 x 5``; a scalar is ``1``."""
    return " x ".join(map(str, shape)) or "1"


def codes(name: str, words: Words) -> str:
    """The array of a tensor's codes, in the smallest integer type that holds them."""
    return array(name, f"int{words.container}_t", words.codes.flatten().tolist(), words.codes.numel())


def _lines(values: Iterable[int], width: int = 110) -> str:
    def filled() -> Iterator[str]:
        line = "   "
        for value in values:
            word = f" {value},"
            if len(line) + len(word) > width:
                yield line
                line = "   "
            line += word
        yield line

    return "\n".join(filled())
