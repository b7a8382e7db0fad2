"""Tables: as Markdown, and in columns for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table of the rows, the first being the header, in columns that line up as text too."""
    rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(_padded(row, widths, len(row)))} |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]], texts: int) -> list[str]:
    """A line for each row, in columns that line up: the first ``texts`` to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_padded(row, widths, texts)).rstrip() for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int], texts: int) -> list[str]:
    pairs = enumerate(zip(row, widths, strict=True))
    return [cell.ljust(width) if at < texts else cell.rjust(width) for at, (cell, width) in pairs]
