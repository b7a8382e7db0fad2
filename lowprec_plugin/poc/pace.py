"""How long a variant's step takes beside float32's, and whether the difference is more than a busy machine makes."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Literal

from lowprec_plugin.poc.groups import Group, Groups

#: A smaller difference is nobody's concern.
SLOWER = 1.05
#: From the median absolute deviation of normal numbers to the standard error of the median of one: 1.4826 sqrt(pi / 2).
SPREAD = 1.858


@dataclass(frozen=True)
class Pace:
    """A variant's step time over float32's.

    Attributes:
        ratio: median over the seeds, each held against float32's run of the same seed, made shortly before by the same
            command. A median, for a machine with other work has some runs that say nothing.
        error: one standard error of ``ratio``, from the median deviation of its logarithm: what float32's twin shows,
            which runs the very same code, or the seeds among themselves where that is larger.
        word: ``"slower"`` or ``"faster"`` if the difference is beyond two standard errors and 5 %, else ``""``. Of
            one seed always ``""``: there one in six that does not differ is beyond, of more about one in twenty.
        seeds: on which all three were timed.
        noisy: the times are too far apart to be told by a number and its error.
    """

    ratio: float
    error: float
    word: Literal["slower", "faster", ""]
    seeds: int

    @property
    def noisy(self) -> bool:
        return self.error > self.ratio / 2

    @property
    def span(self) -> tuple[float, float]:
        """Two standard errors about ``ratio``, which are those of its logarithm."""
        far = math.exp(2 * self.error / self.ratio)
        return self.ratio / far, self.ratio * far


def pace(groups: Groups, variant: str) -> Pace | None:
    """The pace of a variant; ``None`` if no command timed float32, its twin and the variant on one seed."""
    sides = [_logarithms(group) for group in (groups.float32, groups.twin, groups.of[variant])]
    timed = [each for each in sides[2] if each in sides[0] and each in sides[1]]
    if not timed:
        return None
    plain, twin, ours = ([side[each] for each in timed] for side in sides)
    apart = [a - b for a, b in zip(ours, plain, strict=True)]
    middle = statistics.median(apart)
    noise = statistics.median(abs(a - b) for a, b in zip(twin, plain, strict=True))
    own = statistics.median(abs(each - middle) for each in apart)
    error = SPREAD * max(noise, own) / math.sqrt(len(timed))
    beyond = len(timed) > 1 and abs(middle) > max(2 * error, math.log(SLOWER))
    ratio = math.exp(middle)
    return Pace(ratio, ratio * error, ("slower" if ratio > 1 else "faster") if beyond else "", len(timed))


def _logarithms(group: Group) -> dict[tuple[int, str], float]:
    """By seed and command: on another day, or with other threads, the machine is another."""
    return {(run.seed, run.began): math.log(run.step_ms["median"]) for run in group.runs if run.step_ms.get("median")}
