"""What settings are held against: float32 over several seeds, each with a twin, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lowprec_plugin.quality import Comparison, allowance, compare
from lowprec_plugin.text.option_error import Option, OptionError
from lowprec_plugin.tune.records import Run


@dataclass(frozen=True)
class Baseline:
    """Float32 runs and their twins; the first seed is the search's, the others are the confirmation's.

    Args:
        runs, twins: one of each per seed, in the same order.
        higher_is_better: of the metric.
        allowed: how much worse a setting may be: a number in the metric's units, or text such as ``"0.5%"`` of
            float32's mean.

    Raises:
        ValueError: if float32 itself diverges, its noise is too large for any setting to pass, or its mean is 0 and a
            share of it is allowed.
    """

    runs: Sequence[Run]
    twins: Sequence[Run]
    higher_is_better: bool
    allowed: float | str

    def __post_init__(self) -> None:
        for run in (*self.runs, *self.twins):
            if run.value is None:
                raise ValueError(
                    f"float32 itself diverges with seed {run.seed} ({run.diverged}): nothing to hold against"
                )
        if self.tolerance == 0:
            raise OptionError(
                Option.given("tolerance", self.allowed), " of float32's mean, which is 0, allows nothing: give a number"
            )
        alike = self.confirmed(self.values(self.runs[1:]))
        seeds = len(self.runs) - 1
        if 2 * alike.twins_error > self.tolerance:
            enough = math.ceil((2 * alike.noise / self.tolerance) ** 2)
            raise OptionError(
                Option.given("tolerance", self.allowed),
                f" is {self.tolerance:.3g}, and with {seeds} seeds two standard errors of float32's own noise are "
                f"{2 * alike.twins_error:.3g}: no setting could pass. Allow more, or use at least ",
                Option.given("seeds", enough),
            )

    @staticmethod
    def values(runs: Sequence[Run]) -> list[float]:
        """The metric at the end of complete runs."""
        return [run.value for run in runs if run.value is not None]

    @cached_property
    def tolerance(self) -> float:
        """In the metric's units."""
        values = self.values(self.runs)
        return allowance(self.allowed, math.fsum(values) / len(values))

    @property
    def epochs(self) -> int:
        """At the end of how many epochs the search's seed gave the metric."""
        return len(self.runs[0].curve)

    def worse(self, value: float) -> float:
        """How much worse than float32's a complete run of the search's seed is."""
        return self._worse(value, self.values(self.runs[:1])[0])

    def excess(self, value: float) -> float:
        """By how much a complete run is worse than the tolerance and two standard errors of the noise allow; 0: not."""
        pairs = list(zip(self.values(self.runs), self.values(self.twins), strict=True))
        return self._excess(self.worse(value), self._noise(pairs))

    def excess_at(self, epoch: int, value: float) -> float:
        """The same at the end of ``epoch``, beside float32 at the end of that epoch."""
        at = epoch - 1
        if at >= self.epochs:
            return 0.0
        pairs = [
            (run.curve[at], twin.curve[at])
            for run, twin in zip(self.runs, self.twins, strict=True)
            if at < min(len(run.curve), len(twin.curve))
        ]
        return self._excess(self._worse(value, self.runs[0].curve[at]), self._noise(pairs))

    def confirmed(self, values: Sequence[float]) -> Comparison:
        """A setting's runs of the confirmation's seeds beside float32's."""
        return compare(self.values(self.runs[1:]), self.values(self.twins[1:]), values)

    def _worse(self, value: float, baseline: float) -> float:
        return baseline - value if self.higher_is_better else value - baseline

    def _excess(self, worse: float, noise: float) -> float:
        return max(0.0, worse - self.tolerance - 2 * noise)

    @staticmethod
    def _noise(pairs: Sequence[tuple[float, float]]) -> float:
        if not pairs:
            return 0.0
        runs, twins = zip(*pairs, strict=True)
        return compare(runs, twins, twins).noise
