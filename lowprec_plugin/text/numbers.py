"""Numbers and lists as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal


def listed(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([*([", ".join(items[:-1])] if items[1:] else []), *items[-1:]])


def counted(number: int, thing: str, things: str = "") -> str:
    """``1 seed``, ``2 seeds``, ``2 processes``."""
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"


def about(seconds: float) -> str:
    """An estimate: ``about 40 s``, ``about 48 min``, ``about 3.2 hours``."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 90 * 60 else f"about {seconds / 3600:.1f} hours"


def significant(value: float) -> str:
    """Three significant digits, without an exponent below a million."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def rough(value: float) -> str:
    """Two significant digits, without an exponent."""
    return f"{Decimal(f'{value:.2g}'):f}"


def signed(value: float, digits: int) -> str:
    """With its sign, a real minus, and no negative zero."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def bytes_text(nbytes: float) -> str:
    """In the largest binary unit that it fills, with three significant digits."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size:
            return f"{significant(nbytes / size)} {unit}"
    return f"{nbytes:.0f} bytes"


def large(number: float) -> str:
    """A count with three significant digits: ``1.42 billion``."""
    for word, size in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if number >= size:
            return f"{significant(number / size)} {word}"
    return f"{number:,.0f}"


def share(part: float) -> str:
    """Per cent; what is not zero is not written as zero."""
    per_cent = 100 * part
    return "0 %" if part == 0 else "< 0.01 %" if per_cent < 0.01 else f"{per_cent:.{0 if per_cent >= 10 else 2}f} %"


def times(ratio: float) -> str:
    """A multiple: ``1.74 ×``."""
    return f"{ratio:.2f} ×"
