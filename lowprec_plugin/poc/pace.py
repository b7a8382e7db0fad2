"""How long a variant's step takes beside float32's, and whether the difference is more than a busy machine makes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lowprec_plugin.poc.groups import Group, Groups
from lowprec_plugin.quality import compare

#: A smaller difference is nobody's concern.
SLOWER = 1.05


@dataclass(frozen=True)
class Pace:
    """A variant's step time over float32's.

    Attributes:
        ratio: geometric mean over the seeds, each held against float32's run of the same seed, made shortly before.
        error: one standard error of ``ratio``: what float32's twin shows, which runs the very same code, or the seeds
            among themselves where that is larger.
        word: ``"slower"`` or ``"faster"`` if the difference is beyond two standard errors and 5 %, else ``""``.
    """

    ratio: float
    error: float
    word: Literal["slower", "faster", ""]


def pace(groups: Groups, variant: str) -> Pace | None:
    """The pace of a variant; ``None`` if there is no seed on which float32, its twin and the variant were timed."""
    sides = [_logarithms(group) for group in (groups.float32, groups.twin, groups.of[variant])]
    seeds = [seed for seed in sides[2] if seed in sides[0] and seed in sides[1]]
    if not seeds:
        return None
    found = compare(*([side[seed] for seed in seeds] for side in sides))
    beyond = abs(found.difference) > max(2 * found.standard_error, math.log(SLOWER))
    ratio = math.exp(found.difference)
    return Pace(ratio, ratio * found.standard_error, ("slower" if ratio > 1 else "faster") if beyond else "")


def _logarithms(group: Group) -> dict[int, float]:
    return {run.seed: math.log(run.step_ms["median"]) for run in group.runs if run.step_ms.get("median")}
