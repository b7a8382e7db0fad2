"""What can be told of a comparison before it has ended."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowprec_plugin.poc.groups import Groups
from lowprec_plugin.poc.records import RunRecord
from lowprec_plugin.poc.study import Study
from lowprec_plugin.poc.variants import DEFAULT, TWIN
from lowprec_plugin.poc.words import Scale, allowed, counted
from lowprec_plugin.quality import LIMIT, MIN_SEEDS, allowance

#: What to try first of the variants.
FEWER = ("16", "16/8")
#: Twins that are enough to guess their noise by; fewer may be alike by chance.
TWINS = 2


def blind(study: Study, runs: Sequence[RunRecord]) -> str:
    """What the noise between float32 and its twin will hide, once ``TWINS`` of each have ended; empty if it is little.

    Two standard errors over all seeds of the study are held against its tolerance, or the limit of *equal*.
    """
    groups = Groups.make(runs, study.metric, study.mode)
    found = groups.compare(TWIN.name)
    if found is None or len(groups.paired(TWIN.name)) != TWINS or len(study.seeds) < MIN_SEEDS:
        return ""
    hidden = 2 * found.noise / math.sqrt(len(study.seeds))
    given = study.tolerance is not None
    limit = allowance(study.tolerance or f"{100 * LIMIT}%", found.baseline)
    if hidden <= limit:
        return ""
    scale = Scale.of(study.metric, list(groups.float32.values.values()))
    most = f"the {allowed(study.tolerance)} that you allow" if given else f"the {100 * LIMIT:.1f} % that count as equal"
    remedy = "more --seeds" if given else "more --seeds, or --tolerance for what you may lose"
    return (
        f"float32 and its twin, alike but for a last bit, end {scale.distance(found.noise)} apart in {study.metric}: "
        f"with {counted(len(study.seeds), 'seed')} differences below {scale.distance(hidden)} will not be told, and "
        f"{most} are {scale.distance(limit)}. A steadier metric would, or {remedy}"
    )


def ahead(study: Study, there: int) -> str:
    """How many runs there will be, of how many steps, and how there would be fewer."""
    seeds = len(study.seeds)
    told = f"{counted(len(study.variants) * seeds, 'run')} ({counted(len(study.variants), 'variant')}, "
    told += f"{counted(seeds, 'seed')})"
    if study.steps is not None:
        told += f" of {counted(study.steps, 'step')}"
    if there:
        told += f"; {there} {'is' if there == 1 else 'are'} there already"
    if {*study.variants, *study.left_out} == set(DEFAULT):
        told += f"; --variants {','.join(FEWER)} would be {(len(FEWER) + 2) * seeds}"  # float32 and its twin too
    return told
