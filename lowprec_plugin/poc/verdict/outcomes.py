"""What the runs show of each variant.

Everything rests on one rule, :func:`lowprec_plugin.quality.compare`. It is not asked where float32 itself diverged or
learned nothing, where a variant diverged or failed, where there are too few seeds, or where every run ended at one
value. A difference within the noise that is too large to be called equal is not settled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from lowprec_plugin.poc.run.metrics import Scale
from lowprec_plugin.poc.run.variants import FLOAT32, TWIN
from lowprec_plugin.poc.verdict.curves import are_one, learned
from lowprec_plugin.poc.verdict.groups import Group, Groups
from lowprec_plugin.quality import LIMIT, Comparison

#: More seeds than anybody runs.
PRACTICAL = 100
#: Standard errors. Of nine variants that are like float32, over four seeds, one or more is beyond two of them in 28 %
#: of all reports, and beyond three in 6 %.
SURE = 3
#: ``"tolerated"``: not equal, but within the tolerance, two standard errors included. ``"better"``: beyond the noise,
#: which promises nothing. ``"no yardstick"``: float32 is not fit to compare with.
Outcome = Literal[
    "equal", "tolerated", "worse", "diverged", "better", "unsettled", "few seeds", "failed", "no run", "no yardstick"
]
#: ``"unstable"``: some runs of float32 or its twin diverged. ``"flat"``: float32 learned nothing. ``"one"``: its runs
#: are the same, whatever their seed.
Baseline = Literal["sound", "unstable", "flat", "one", "diverged", "failed", "no run"]


class Spoken(NamedTuple):
    """An outcome by a sign, in a word or two, and behind names in a sentence."""

    sign: str
    word: str
    predicate: str


#: In the order of a headline.
SPOKEN: dict[Outcome, Spoken] = {
    "equal": Spoken("✓", "equal", "{are} within seed noise of float32"),
    "tolerated": Spoken("✓", "within what you allow", "{are} within the {allowed} you allow"),
    "worse": Spoken("✗", "worse", "{are} worse"),
    "diverged": Spoken("✗", "diverged", "diverged"),
    "better": Spoken("≠", "different", "{are} different, favourably"),
    "unsettled": Spoken("?", "not settled", "{are} not settled"),
    "few seeds": Spoken("…", "too few seeds", "{are} short of seeds"),
    "failed": Spoken("–", "no result", "gave no result"),
    "no run": Spoken("…", "not run yet", "{are} yet to run"),
    "no yardstick": Spoken("?", "cannot be judged", "cannot be judged without a sound float32"),
}


@dataclass(frozen=True)
class Finding:
    """What is found of one variant."""

    variant: str
    outcome: Outcome
    seeds: tuple[int, ...] = ()  # that were compared
    comparison: Comparison | None = None  # on these seeds
    diverged: tuple[int, ...] = ()  # seeds on which it diverged
    recovers: str | None = None  # the variant without a ramp that failed, where this one with a ramp is equal
    widened: tuple[int, ...] = ()  # steps of the first widening, one for each run in which a ramp widened

    @property
    def seeds_to_settle(self) -> int:
        """Seeds that bring two standard errors down to the limit of *equal*; above ``PRACTICAL``: too many."""
        assert self.comparison is not None, "what is not compared is not unsettled"
        seen, limit = 2 * self.comparison.standard_error, LIMIT * abs(self.comparison.baseline)
        if seen >= PRACTICAL * limit:  # of a metric near zero, where no share of it is anything
            return PRACTICAL + 1
        return math.ceil(len(self.seeds) * (seen / limit) ** 2)


@dataclass(frozen=True)
class Overview:
    """All that was found."""

    groups: Groups
    scale: Scale
    baseline: Baseline
    findings: Sequence[Finding]  # one for each variant that is compared with float32, in order

    @property
    def steps(self) -> int:
        """The most that a run of float32 made."""
        return max((run.steps for run in self.groups.float32.runs), default=0)

    @property
    def yardsticks(self) -> str:
        """How many runs of float32 and its twin diverged."""
        runs = self.groups.float32.runs + self.groups.twin.runs
        return f"{sum(run.status == 'diverged' for run in runs)} of {len(runs)} runs"

    def found(self, *outcomes: Outcome) -> list[Finding]:
        """The variants that came out so."""
        return [finding for finding in self.findings if finding.outcome in outcomes]

    def predicate(self, outcome: Outcome, count: int = 1) -> str:
        """What is said of ``count`` variants that came out so."""
        allowed = str(self.groups.tolerance).replace(" ", "").replace("%", " %")
        return SPOKEN[outcome].predicate.format(are="is" if count == 1 else "are", allowed=allowed)

    def is_stuck(self, finding: Finding) -> bool:
        """Whether it is not settled because every run ended at one value."""
        return finding.outcome == "unsettled" and not finding.diverged and self.groups.stuck(finding.variant)

    def may_be_chance(self, finding: Finding) -> bool:
        """Whether a difference beyond two standard errors may be chance, because there are other comparisons."""
        found, comparisons = finding.comparison, sum(each.comparison is not None for each in self.findings)
        if found is None or finding.outcome not in ("worse", "better"):
            return False
        return comparisons > 1 and abs(found.difference) <= SURE * found.standard_error


def baseline(groups: Groups) -> Baseline:
    """Whether float32 and its twin are fit to compare with."""
    for group in (groups.float32, groups.twin):
        if not group.values:
            return "diverged" if group.ended("diverged") else "failed" if group.runs else "no run"
    signs = [learned(run, groups.metric, groups.higher_is_better) for run in groups.float32.runs]
    if signs.count(False) > signs.count(True):
        return "flat"
    if are_one(groups.float32.ended("finished")):
        return "one"
    return "unstable" if groups.float32.ended("diverged") or groups.twin.ended("diverged") else "sound"


def findings(groups: Groups) -> list[Finding]:
    """One for each variant that is compared with float32, in order."""
    state, found = baseline(groups), {}
    for variant, group in groups.of.items():
        if variant not in (FLOAT32.name, TWIN.name):
            comparison, diverged = groups.compare(variant), tuple(run.seed for run in group.ended("diverged"))
            outcome = _outcome(groups, group, state, comparison)
            found[variant] = Finding(variant, outcome, tuple(groups.paired(variant)), comparison, diverged)
    return [_with_ramp(each, found, groups.of[each.variant]) for each in found.values()]


def _outcome(groups: Groups, group: Group, state: Baseline, comparison: Comparison | None) -> Outcome:
    if not group.runs:
        return "no run"
    if state not in ("sound", "unstable"):
        return "no yardstick"
    if group.ended("diverged"):
        return "diverged" if state == "sound" else "unsettled"  # float32 diverges too: it may not be precision
    if not group.values:
        return "failed"
    if comparison is None or comparison.equal is None:
        return "few seeds"
    if groups.stuck(group.variant):
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
    """A variant named after another, ``with ramp``, may have recovered that one."""
    widened = tuple(int(run.widened[0]["step"]) for run in group.runs if run.widened)
    base = found.get(re.sub(r",?( with)? ramp$", "", finding.variant))
    failed = base is not None and base.outcome in ("worse", "diverged")
    recovers = base.variant if base and failed and finding.outcome == "equal" and widened else None
    return replace(finding, widened=widened, recovers=recovers)
