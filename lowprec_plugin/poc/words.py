"""Figures and lists as the report writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

#: Ends of words in names of metrics: "val_acc", "BinaryAccuracy", "top5acc1", "loss/train", but neither "accumulated"
#: nor "inferred".
ACCURACY = re.compile(r"acc(uracy)?(?![a-z])", re.IGNORECASE)
LOSS = re.compile(r"loss(es)?(?![a-z])", re.IGNORECASE)
ERROR = re.compile(r"(err(or)?s?|perplexity)(?![a-z])", re.IGNORECASE)
#: Whole words, between anything but letters and digits.
MORE = {"auc", "auroc", "f1", "r2"}
LESS = {"mae", "mape", "mse", "rmse"}
#: As in scikit-learn's names, of which more is better; but a loss may be of negative examples.
TURNED = {"neg", "negative"}


def way(metric: str) -> Literal["max", "min"] | None:
    """Whether more or less of a metric is better, by its name; ``None``: its name does not tell, or tells both."""
    words = set(re.split(r"[\W_]+", metric.lower()))
    more = bool(ACCURACY.search(metric) or words & MORE)
    less = bool(LOSS.search(metric) or ERROR.search(metric) or words & LESS)
    return None if more == less or words & TURNED else "max" if more else "min"


@dataclass(frozen=True)
class Scale:
    """How a metric is written: an accuracy between 0 and 1 in per cent, anything else as it is.

    What is very small or very large is written in units of a power of ten.

    Attributes:
        factor: from the metric to what is written.
        digits: behind the point.
        unit, difference_unit: written after a value, after a difference.
    """

    factor: float
    digits: int
    unit: str = ""
    difference_unit: str = ""

    @classmethod
    def of(cls, metric: str, values: Sequence[float]) -> Scale:
        """The scale for these values: four significant digits, or hundredths of a per cent."""
        largest = max((abs(value) for value in values), default=0.0)
        if ACCURACY.search(metric) and way(metric) == "max" and largest <= 1:
            return cls(100, 2, " %", " points")
        power = math.floor(math.log10(max(largest, 1e-300))) if largest else 0
        if power < -3 or power > 6:
            return cls(10.0**-power, 3, f" × 1e{power}", f" × 1e{power}")
        return cls(1, 3 - power if power < 3 else 1)

    def value(self, value: float) -> str:
        """A value of the metric."""
        number = f"{self.factor * value:.{self.digits}f}".replace("-", "−")
        return f"{number}{self.unit}"

    def difference(self, difference: float, error: float) -> str:
        """A difference and its standard error; one digit of the error at least."""
        difference, error = self.factor * difference, self.factor * error
        digits = min(9, max(self.digits, -math.floor(math.log10(error)))) if error > 0 else self.digits
        return f"{signed(difference, digits)} ± {error:.{digits}f}{self.difference_unit}"

    def signed(self, difference: float) -> str:
        """A difference without its unit."""
        return signed(self.factor * difference, self.digits)

    def distance(self, distance: float) -> str:
        """How far apart two values are."""
        return f"{rough(self.factor * abs(distance))}{self.difference_unit}"


def signed(value: float, digits: int) -> str:
    """With its sign, a real minus, and no negative zero."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def spoken(variant: str) -> str:
    """A variant's name in a sentence: ``16`` is 16-bit stochastic, ``16/8`` is 16/8-bit, ``12 ramp`` is 12-bit ramp."""
    found = re.fullmatch(r"(\d+(?:/\d+)?)( .*)?", variant)
    if not found:
        return variant
    bits, rest = found.groups()
    return f"{bits}-bit{rest or ('' if '/' in bits else ' stochastic')}"


def listed(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def counted(number: int, thing: str, things: str = "") -> str:
    """``1 seed``, ``2 seeds``, ``2 processes``."""
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"


def about(seconds: float) -> str:
    """An estimate: ``about 40 s``, ``about 48 min``, ``about 3.2 hours``."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 90 * 60 else f"about {seconds / 3600:.1f} hours"


def bytes_text(nbytes: float) -> str:
    """In the largest binary unit that it fills, with three significant digits."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size:
            return f"{significant(nbytes / size)} {unit}"
    return f"{nbytes:.0f} bytes"


def significant(value: float) -> str:
    """Three significant digits, without an exponent below a million."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def rough(value: float) -> str:
    """Two significant digits, without an exponent."""
    return f"{Decimal(f'{value:.2g}'):f}"


def large(number: float) -> str:
    """A count with three significant digits: ``1.42 billion``."""
    for word, size in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if number >= size:
            return f"{significant(number / size)} {word}"
    return f"{number:,.0f}"


def batches(count: float) -> str:
    """As they were run: ``14 × your batch``."""
    return f"{large(count)} × your batch"


def share(part: float) -> str:
    """Per cent; what is not zero is not written as zero."""
    per_cent = 100 * part
    return "0 %" if part == 0 else "< 0.01 %" if per_cent < 0.01 else f"{per_cent:.{0 if per_cent >= 10 else 2}f} %"


def allowed(tolerance: float | str | None) -> str:
    """A tolerance as the user gave it: ``0.005``, ``2 %``."""
    return str(tolerance).replace("%", " %").replace("  ", " ").strip()


def times(ratio: float) -> str:
    """A multiple: ``1.74 ×``."""
    return f"{ratio:.2f} ×"
