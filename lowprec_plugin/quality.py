"""When is a run in low precision as good as one in float32? One rule, for tests, tables and reports alike.

Training is chaotic: two runs whose weights differ in the last bit end at different losses. So the noise is measured
first: float32 runs over several seeds, each with a *twin* whose weights start one last bit away. A setting, run over
the same seeds, is *equal* to float32 when its mean paired difference is within two standard errors of zero, as that
noise gives them, and below a limit of 0.3 % of float32's mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MIN_SEEDS = 4


@dataclass(frozen=True)
class Comparison:
    """A setting beside float32, in the metric's own units.

    Attributes:
        baseline, setting: mean metric of the float32 runs and of the setting.
        difference: mean over the seeds of setting minus float32.
        standard_error: of ``difference``, if setting and float32 were alike: the twins' noise over ``sqrt(seeds)``.
        noise: root mean square of twin minus float32: the difference that one seed shows for no reason.
        own_error: the standard error of ``difference`` that the seeds' differences themselves give; NaN for one seed.
            No part of the verdict: where float32's twins do not come apart, it says what the setting's own noise is.
        equal: the verdict; ``None`` with fewer than ``MIN_SEEDS`` seeds.
    """

    baseline: float
    setting: float
    difference: float
    standard_error: float
    noise: float
    own_error: float
    equal: bool | None


def compare(
    baseline: Sequence[float], twins: Sequence[float], setting: Sequence[float], *, limit: float = 0.003
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
    own_error = statistics.stdev(differences) / math.sqrt(seeds) if seeds > 1 else math.nan
    noise = math.sqrt(math.fsum((t - b) ** 2 for t, b in zip(twins, baseline, strict=True)) / seeds)
    error = noise / math.sqrt(seeds)
    equal = None
    if seeds >= MIN_SEEDS:
        # An exact tie is equal whatever the noise; float sums of equal numbers may differ in the last bit.
        equal = abs(difference) <= max(2 * error, 1e-12 * abs(mean)) and abs(difference) < limit * abs(mean)
    return Comparison(mean, math.fsum(setting) / seeds, difference, error, noise, own_error, equal)
