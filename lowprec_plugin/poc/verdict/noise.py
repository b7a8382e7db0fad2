"""What noise hides: in step times, and in a metric before all runs have ended."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lowprec_plugin.poc.run.metrics import Scale
from lowprec_plugin.poc.run.study import RunRecord, Study
from lowprec_plugin.poc.run.variants import DEFAULT, TWIN
from lowprec_plugin.poc.verdict.groups import Group, Groups
from lowprec_plugin.quality import LIMIT, MIN_SEEDS, allowance
from lowprec_plugin.text.numbers import counted

#: Smaller differences of step times do not matter.
SLOWER = 1.05
#: From the median absolute deviation of normal numbers to the standard error of the median of one: 1.4826 sqrt(pi / 2).
SPREAD = 1.858
#: The variants to try first.
FEWER = ("16", "16/8")
#: Twins that show their noise; one may be alike by chance.
TWINS = 2


@dataclass(frozen=True)
class Pace:
    """A variant's step time over float32's.

    Attributes:
        ratio: median over the seeds, each beside float32's run of the same seed and command: on a busy machine some
            runs say nothing.
        error: standard error of ``ratio``, from the median deviation of its logarithm: the twin's, which runs the same
            code, or the seeds' own where that is larger.
        word: ``"slower"`` or ``"faster"`` if the difference is beyond two standard errors and 5 %, else ``""``. For
            one seed always ``""``: there one in six without a difference is beyond, for more about one in twenty.
        seeds: on which all three were timed.
    """

    ratio: float
    error: float
    word: Literal["slower", "faster", ""]
    seeds: int

    @property
    def said(self) -> str:
        """What is written behind the ratio, such as ``, slower``: a figure that is all noise would mislead."""
        uncertain = "very uncertain" if self.error > self.ratio / 2 else ""
        return "".join(f", {each}" for each in (self.word, uncertain) if each)


def pace(groups: Groups, variant: str) -> Pace | None:
    """The pace of a variant; ``None`` if no command timed float32, its twin and the variant on one seed."""
    plain, twin, ours = (_logarithms(group) for group in (groups.float32, groups.twin, groups.of[variant]))
    timed = [each for each in ours if each in plain and each in twin]
    if not timed:
        return None
    differences = [ours[each] - plain[each] for each in timed]
    middle = statistics.median(differences)
    noise = statistics.median(abs(twin[each] - plain[each]) for each in timed)
    own = statistics.median(abs(each - middle) for each in differences)
    error = SPREAD * max(noise, own) / math.sqrt(len(timed))
    beyond = len(timed) > 1 and abs(middle) > max(2 * error, math.log(SLOWER))
    ratio = math.exp(middle)
    return Pace(ratio, ratio * error, ("slower" if ratio > 1 else "faster") if beyond else "", len(timed))


def _logarithms(group: Group) -> dict[tuple[int, str], float]:
    """By seed and command: on another day, or with other threads, the machine is another."""
    return {(run.seed, run.began): math.log(run.step_ms["median"]) for run in group.runs if run.step_ms.get("median")}


def blind(study: Study, runs: Sequence[RunRecord]) -> str:
    """What the noise of just ``TWINS`` pairs of float32 and twin says that all seeds will hide; empty if little.

    Two standard errors are compared with the tolerance, or the limit of *equal*.
    """
    groups = Groups.make(runs, study.metric, study.mode)
    found = groups.compare(TWIN.name)
    if found is None or len(groups.paired(TWIN.name)) != TWINS or len(study.seeds) < MIN_SEEDS:
        return ""
    hidden = 2 * found.noise / math.sqrt(len(study.seeds))
    limit = allowance(study.tolerance or f"{100 * LIMIT}%", found.baseline)
    if hidden <= limit:
        return ""
    scale = Scale.of(study.metric, list(groups.float32.values.values()))
    apart, shown, most = map(scale.distance, (found.noise, hidden, limit))
    counts = f"up to {most} count as equal" if study.tolerance is None else f"you allow {most}"
    return (
        f"float32 and its twin end {apart} apart in {study.metric}: {counted(len(study.seeds), 'seed')} cannot show "
        f"differences below {shown}, where {counts}. Use a steadier metric, more --seeds or a larger --tolerance"
    )


def ahead(study: Study, there: int) -> str:
    """How many runs there will be, of how many steps, and how to have fewer."""
    seeds, variants = len(study.seeds), len(study.variants)
    said = f"{counted(variants * seeds, 'run')} ({counted(variants, 'variant')}, {counted(seeds, 'seed')})"
    if study.steps is not None:
        said += f" of {counted(study.steps, 'step')}"
    if there:
        said += f"; {there} {'is' if there == 1 else 'are'} there already"
    if {*study.variants, *study.left_out} == set(DEFAULT):
        said += f"; --variants {','.join(FEWER)} would be {(len(FEWER) + 2) * seeds}"  # float32 and its twin too
    return said
