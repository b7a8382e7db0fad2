"""What the runs say of each variant, and no more than they say.

Everything rests on one rule, :func:`lowprec_plugin.quality.compare`. Around it stand the cases in which the rule must
not be asked: float32 itself diverged or learned nothing, so that nothing can be said of precision; a variant diverged
or failed; there are too few seeds; every run ended at one value, as an accuracy of 100 %, which tells nothing apart; or
a difference is within the noise but too large to be called equal, so that it is neither.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lowprec_plugin.poc.curves import are_one, learned
from lowprec_plugin.poc.groups import Group, Groups
from lowprec_plugin.quality import (
    LIMIT,
    Comparison,
)

#: Fewer steps than these, and updates that are lost have not added up to anything yet.
SHORT = 50
#: More seeds than anybody runs.
PRACTICAL = 100
#: Standard errors. Of nine variants that are like float32, over four seeds, one or more is beyond two of them in 28 %
#: of all reports, and beyond three in 6 %.
SURE = 3
#: ``"tolerated"``: not equal, but worse by no more than the user allows, two standard errors included. ``"better"`` is
#: beyond the noise too, and is no promise. ``"no yardstick"``: float32 is not fit to compare with.
Outcome = Literal[
    "equal", "tolerated", "worse", "better", "unsettled", "few seeds", "diverged", "failed", "no run", "no yardstick"
]  # fmt: skip
#: Each as a reader is told it.
SPOKEN: dict[Outcome, str] = {
    "equal": "equal", "tolerated": "within what you allow", "worse": "worse", "better": "different",
    "unsettled": "not settled", "few seeds": "too few seeds", "diverged": "diverged", "failed": "no result",
    "no run": "not run yet", "no yardstick": "cannot be judged",
}  # fmt: skip
#: ``"unstable"``: some of the runs of float32 or of its twin diverged. ``"flat"``: they learned nothing. ``"one"``: its
#: runs are one and the same, whatever their seed.
Baseline = Literal["sound", "unstable", "flat", "one", "diverged", "failed", "no run"]


@dataclass(frozen=True)
class Finding:
    """What is found of one variant.

    Attributes:
        outcome: in a word.
        seeds: that were compared.
        comparison: on these seeds; ``None`` if there are none.
        diverged: seeds on which it diverged.
        recovers: the variant without a ramp that is not equal to float32, where this one with a ramp is.
        widened: steps of the first widening, one for each run in which a ramp widened.
    """

    variant: str
    outcome: Outcome
    seeds: tuple[int, ...] = ()
    comparison: Comparison | None = None
    diverged: tuple[int, ...] = ()
    recovers: str | None = None
    widened: tuple[int, ...] = ()

    @property
    def compared(self) -> Comparison:
        """The comparison, where the outcome says that there is one."""
        assert self.comparison is not None
        return self.comparison


def baseline(groups: Groups) -> Baseline:
    """Whether float32 and its twin are fit to compare with."""
    for group in (groups.float32, groups.twin):
        if not group.values:
            return "diverged" if group.ended("diverged") else "failed" if group.runs else "no run"
    yardsticks = groups.float32.runs + groups.twin.runs
    known = [
        each
        for run in groups.float32.runs
        if (each := learned(run, groups.metric, groups.higher_is_better)) is not None
    ]
    if known and sum(known) * 2 < len(known):
        return "flat"
    if are_one(groups.float32.ended("finished")):
        return "one"
    return "unstable" if any(run.status == "diverged" for run in yardsticks) else "sound"


def findings(groups: Groups) -> list[Finding]:
    """One for each variant that is compared with float32, in order."""
    state = baseline(groups)
    found = {group.variant: _finding(groups, group, state) for group in groups.settings}
    return [_with_ramp(each, found, groups.of[each.variant]) for each in found.values()]


def of(found: Sequence[Finding], *outcomes: Outcome) -> list[Finding]:
    """Those that came out so."""
    return [finding for finding in found if finding.outcome in outcomes]


def is_short(groups: Groups) -> bool:
    """Whether the runs are too short to show what a format does."""
    return groups.steps < SHORT


def may_be_chance(finding: Finding, found: Sequence[Finding]) -> bool:
    """Whether a difference beyond two standard errors is small enough to be chance beside the other comparisons."""
    comparisons = sum(each.comparison is not None for each in found)
    return comparisons > 1 and abs(finding.compared.difference) <= SURE * finding.compared.standard_error


def seeds_to_settle(finding: Finding) -> int:
    """How many seeds bring two standard errors down to the limit of what counts as equal; above PRACTICAL: too many."""
    seen, limit = 2 * finding.compared.standard_error, LIMIT * abs(finding.compared.baseline)
    if seen > PRACTICAL * limit:  # of a metric that is near zero, or zero, where no share of it is anything
        return PRACTICAL + 1
    return math.ceil(len(finding.seeds) * (seen / limit) ** 2)


def _finding(groups: Groups, group: Group, state: Baseline) -> Finding:
    comparison = groups.compare(group.variant)
    return Finding(
        group.variant,
        _outcome(groups, group, state, comparison),
        tuple(groups.paired(group.variant)),
        comparison,
        tuple(run.seed for run in group.ended("diverged")),
    )


def _outcome(groups: Groups, group: Group, state: Baseline, comparison: Comparison | None) -> Outcome:
    if not group.runs:
        return "no run"
    if state not in ("sound", "unstable"):
        return "no yardstick"
    if group.ended("diverged"):
        return "diverged" if state == "sound" else "unsettled"  # float32 diverges here as well: it may not be precision
    if not group.values:
        return "failed"
    if comparison is None or comparison.equal is None:
        return "few seeds"
    if groups.stuck(group.variant) is not None:
        return "unsettled"
    if comparison.equal:
        return "equal"
    beyond = abs(comparison.difference) > 2 * comparison.standard_error
    if beyond and comparison.worse(higher_is_better=groups.higher_is_better) < 0:
        return "better"
    if groups.tolerated(comparison):
        return "tolerated"
    return "worse" if beyond else "unsettled"


def _with_ramp(finding: Finding, found: Mapping[str, Finding], group: Group) -> Finding:
    """A variant named after another with ``ramp`` behind it may have recovered that one."""
    widened = tuple(int(run.widened[0]["step"]) for run in group.runs if run.widened)
    base = found.get(re.sub(r",?( with)? ramp$", "", finding.variant))
    recovers = (
        base is not None
        and base.outcome in ("worse", "diverged")
        and finding.outcome == "equal"
        and bool(widened)
    )  # fmt: skip
    return replace(finding, widened=widened, recovers=base.variant if base and recovers else None)
