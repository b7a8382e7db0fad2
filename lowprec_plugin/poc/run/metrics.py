"""Metrics by their names: which way is better, and how values are written."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lowprec_plugin.poc.run.study import Mode
from lowprec_plugin.text.numbers import rough, signed

#: Ends of words: "val_acc", "BinaryAccuracy", "top5acc1", "loss/train", but not "accumulated" or "inferred".
ACCURACY = re.compile(r"acc(uracy)?(?![a-z])", re.IGNORECASE)
LOSS = re.compile(r"loss(es)?(?![a-z])", re.IGNORECASE)
ERROR = re.compile(r"(err(or)?s?|perplexity)(?![a-z])", re.IGNORECASE)
#: Whole words.
MORE = {"auc", "auroc", "f1", "r2"}
LESS = {"mae", "mape", "mse", "rmse"}
#: scikit-learn negates errors, so that more is better; but a loss may be of negative examples.
TURNED = {"neg", "negative"}


def way(metric: str) -> Mode | None:
    """Whether more or less of a metric is better, by its name; ``None`` if the name says neither or both."""
    words = set(re.split(r"[\W_]+", metric.lower()))
    more = bool(ACCURACY.search(metric) or words & MORE)
    less = bool(LOSS.search(metric) or ERROR.search(metric) or words & LESS)
    return None if more == less or words & TURNED else "max" if more else "min"


@dataclass(frozen=True)
class Scale:
    """How a metric is written: an accuracy between 0 and 1 in per cent, very small or large numbers in powers of ten.

    Attributes:
        factor: from the metric to what is written.
        digits: after the point.
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
        return f"{self.factor * value:.{self.digits}f}".replace("-", "−") + self.unit

    def difference(self, difference: float, error: float) -> tuple[str, str]:
        """A difference and its standard error, without their unit; at least one digit of the error."""
        difference, error = self.factor * difference, self.factor * error
        digits = min(9, max(self.digits, -math.floor(math.log10(error)))) if error > 0 else self.digits
        return signed(difference, digits), f"{error:.{digits}f}"

    def distance(self, distance: float) -> str:
        """How far apart two values are."""
        return f"{rough(self.factor * abs(distance))}{self.difference_unit}"
