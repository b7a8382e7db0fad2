"""When is a run in low precision as good as one in float32? One rule, for tests, tables and reports alike.

Training is chaotic: two runs whose weights differ in the last bit end at different losses. So the noise is measured
first: float32 runs over several seeds, each with a *twin* whose weights start one last bit away. A setting, run over
the same seeds, is *equal* to float32 when its mean paired difference is within two standard errors of zero and below
a limit of 0.3 % of float32's mean.

The standard error is the twins', or that of the setting's own paired differences where this is larger: a run that is
too short or too calm for chaos leaves float32's twins as they were, and any other arithmetic apart by its own noise
(``docs/decisions/0008-equal-without-chaos.md``). The verdict by the twins alone is given beside it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lowprec_plugin.text.option_error import Option, OptionError

MIN_SEEDS = 4
#: Largest difference that still counts as equal, as a share of float32's mean.
LIMIT = 0.003


@dataclass(frozen=True)
class Comparison:
    """A setting beside float32, in the metric's own units.

    Attributes:
        baseline, setting: mean metric of the float32 runs and of the setting.
        difference: mean over the seeds of setting minus float32.
        noise: root mean square of twin minus float32: the difference that one seed shows for no reason.
        twins_error: the standard error of ``difference`` if setting and float32 were alike: ``noise / sqrt(seeds)``.
        own_error: the standard error of ``difference`` that the seeds' differences themselves give; 0 for one seed.
        equal: the verdict; ``None`` with fewer than ``MIN_SEEDS`` seeds.
        equal_by_twins: the verdict by the twins' standard error alone.
    """

    baseline: float
    setting: float
    difference: float
    noise: float
    twins_error: float
    own_error: float
    equal: bool | None
    equal_by_twins: bool | None

    @property
    def standard_error(self) -> float:
        """The one that ``equal`` goes by."""
        return max(self.twins_error, self.own_error)

    def worse(self, *, higher_is_better: bool) -> float:
        """How much worse than float32 the setting is; negative: better."""
        return -self.difference if higher_is_better else self.difference

    def within(self, tolerance: float, *, higher_is_better: bool) -> bool | None:
        """Whether the setting is worse than float32 by ``tolerance`` at most even if two standard errors are added.

        For those who may lose a little: *equal* asks for no difference at all. ``None`` with fewer than ``MIN_SEEDS``.
        """
        if self.equal is None:
            return None
        return self.worse(higher_is_better=higher_is_better) + 2 * self.standard_error <= tolerance


def compare(
    baseline: Sequence[float], twins: Sequence[float], setting: Sequence[float], *, limit: float = LIMIT
) -> Comparison:
    """Apply the rule to one metric, given per seed in the same order.

    Args:
        baseline: float32 runs.
        twins: float32 runs with weights that start one last bit away.
        setting: runs of the setting.
        limit: largest relative difference that still counts as equal.

    Raises:
        ValueError: if the three do not have one value per seed.
    """
    if not len(baseline) == len(twins) == len(setting) or not baseline:
        raise ValueError(
            f"{len(baseline)} float32 runs, {len(twins)} twins and {len(setting)} runs of the setting: "
            "the rule compares one of each per seed"
        )
    seeds = len(baseline)
    mean = math.fsum(baseline) / seeds
    differences = [s - b for s, b in zip(setting, baseline, strict=True)]
    difference = math.fsum(differences) / seeds
    own_error = statistics.stdev(differences) / math.sqrt(seeds) if seeds > 1 else 0.0
    noise = math.sqrt(math.fsum((t - b) ** 2 for t, b in zip(twins, baseline, strict=True)) / seeds)
    twins_error = noise / math.sqrt(seeds)

    def verdict(error: float) -> bool | None:
        # An exact tie is equal whatever the noise, at zero too; float sums of equal numbers may differ in the last bit.
        tie = abs(difference) <= 1e-12 * abs(mean)
        close = abs(difference) <= 2 * error and abs(difference) < limit * abs(mean)
        return tie or close if seeds >= MIN_SEEDS else None

    return Comparison(
        baseline=mean,
        setting=math.fsum(setting) / seeds,
        difference=difference,
        noise=noise,
        twins_error=twins_error,
        own_error=own_error,
        equal=verdict(max(twins_error, own_error)),
        equal_by_twins=verdict(twins_error),
    )


def allowance(tolerance: float | str, mean: float) -> float:
    """By how much a setting may be worse, in the metric's units: a number as it is, ``"0.5%"`` of ``mean``'s size.

    Raises:
        ValueError: for anything else, and for what is not above 0.
    """
    text = str(tolerance).strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise OptionError(
            Option.given("tolerance", tolerance), " is not a positive number such as 0.005, nor a share such as '0.5%'"
        )
    return number / 100 * abs(mean) if text.endswith("%") else number
