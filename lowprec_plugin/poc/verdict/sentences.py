"""The verdict in words: what is wrong with the baseline, and what is found of each variant, with the evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lowprec_plugin.poc.run.study import RunRecord
from lowprec_plugin.poc.run.variants import spoken
from lowprec_plugin.poc.verdict.curves import learned, training_loss
from lowprec_plugin.poc.verdict.groups import Group
from lowprec_plugin.poc.verdict.outcomes import SPOKEN, Finding, Overview
from lowprec_plugin.quality import LIMIT, Comparison
from lowprec_plugin.text.numbers import counted, listed, rough, share

#: Words of a headline, at most.
WORDS = 25
#: Fewer steps than these, and lost updates have not added up to anything yet.
SHORT = 50
#: Shares from which on lost updates and numbers out of range are mentioned.
LOST, SATURATED = 0.1, 0.01


def headline(view: Overview) -> str:
    """All of it in at most ``WORDS`` words."""
    if wrong := _unfit(view):
        return f"{wrong[0]}: this comparison says nothing about precision."
    said, rest = "", len(view.findings)
    for outcome in SPOKEN:
        if some := view.found(outcome):
            clause = view.predicate(outcome, len(some))
            ways = [f"{said}{'; ' if said else ''}{who} {clause}" for who in (names(some), f"{len(some)} variants")]
            longer = next((each for each in ways if len(each.split()) <= WORDS - 3), "")
            if not longer:
                return f"{said}; {counted(rest, 'other')} below."
            said, rest = longer, rest - len(some)
    return f"{said or 'Nothing was compared with float32'}."


def caution(view: Overview) -> str:
    """What is wrong with the baseline, or with the length of the runs; empty if nothing is."""
    if wrong := _unfit(view):
        return f"{wrong[0]}{wrong[1]}."
    unstable = f"float32 itself diverged on {view.yardsticks}: this training is unstable."
    short = f"These runs had {counted(view.steps, 'step')}, too few to show what a format does."
    said = {unstable: view.baseline == "unstable", short: view.steps < SHORT}
    return " ".join(each for each, holds in said.items() if holds)


def _unfit(view: Overview) -> tuple[str, str] | None:
    """What is wrong with a baseline that is not fit to compare with, and how that shows."""
    groups, float32 = view.groups, view.groups.float32
    bad, who = (groups.twin, "float32's twin") if float32.values else (float32, "float32 itself")
    match view.baseline:
        case "diverged":
            return f"{who} diverged", f" on {_seeds(bad.ended('diverged'), bad)}"
        case "failed":
            return f"{who} gave no result", f": {_failure(bad)}"
        case "no run":
            return f"{who} has not run yet", ""
        case "flat":
            flat = [run for run in float32.runs if learned(run, groups.metric, groups.higher_is_better) is False]
            loss = training_loss(float32.runs)
            how = f"its {loss} did not fall, and {groups.metric} got no better"
            return "float32 itself learned nothing", f" on {_part(flat, float32)}: {how}"
        case "one":
            same = f"all {len(float32.values)} runs are the same"
            return "float32's seeds make no difference", f": {same}, as if the module or its data set its own seed"
    return None


def sentence(view: Overview, finding: Finding) -> str:
    """What is found of one variant, with the evidence and its uncertainty."""
    group, outcome = view.groups.of[finding.variant], finding.outcome
    said = f"{spoken(finding.variant)} {view.predicate(outcome)}"
    if finding.diverged:
        beside = f"float32 and its twin on {view.yardsticks}"
        it = "" if outcome == "diverged" else ": it diverged"
        said += f"{it} on {_seeds(group.ended('diverged'), group)}, {beside}"
    elif finding.comparison is not None:
        said += f" ({_evidence(view, finding, finding.comparison)})"
    elif outcome == "failed":
        said += f": {_failure(group)}"
    return " ".join([f"{said}.", *_of_comparison(view, finding), *_of_runs(view, finding, group)])


def _evidence(view: Overview, finding: Finding, found: Comparison) -> str:
    scale, seeds = view.scale, counted(len(finding.seeds), "seed")
    values = f"{view.groups.metric} {scale.value(found.setting)} against {scale.value(found.baseline)}"
    difference = " ± ".join(scale.difference(found.difference, found.standard_error))
    return f"{values}, {difference}{scale.difference_unit} over {seeds}"


def _of_comparison(view: Overview, finding: Finding) -> Iterator[str]:
    """What else the comparison shows, and what it does not."""
    outcome, found, limit = finding.outcome, finding.comparison, f"{100 * LIMIT:.1f} %"
    if found is None or (outcome == "unsettled" and finding.diverged):
        return
    error, size = 2 * found.standard_error, abs(found.baseline)
    if outcome == "equal" and error > LIMIT * size:
        yield f"{counted(len(finding.seeds), 'seed')} cannot show differences below {view.scale.distance(error)}."
    if outcome == "worse" and abs(found.difference) < LIMIT * size:
        yield f"The difference is below {limit}, but beyond seed noise."
    if outcome == "better":
        yield "That is a difference, not a promise."
    if view.is_stuck(finding):
        yield f"{view.groups.metric} cannot tell them apart: every run ended at {view.scale.value(found.baseline)}."
    elif outcome in ("tolerated", "unsettled"):
        if outcome == "unsettled":
            yield f"That is within two standard errors, but above the {limit} that count as equal."
        bound = found.worse(higher_is_better=view.groups.higher_is_better) + error
        known = 0 < bound <= size  # near zero a share of it says nothing
        part = f" ({rough(100 * bound / size)} % of float32's)" if known else ""
        worse = f"{view.scale.distance(bound)} worse{part}" if bound > 0 else "not worse"
        yield f"With two standard errors added it is {worse}."
    if view.may_be_chance(finding):
        comparisons = sum(each.comparison is not None for each in view.findings)
        yield f"It is one of {comparisons} comparisons, of which one in twenty comes out so by chance."


def _of_runs(view: Overview, finding: Finding, group: Group) -> Iterator[str]:
    """What the runs show beside their metric."""
    if group.failed and finding.outcome != "failed":
        yield f"{_part(group.failed, group)} gave no result: {_failure(group)}."
    steps = {run.seed: run.steps for run in view.groups.float32.ended("finished")}
    if other := [run for run in group.ended("finished") if run.steps != steps.get(run.seed, run.steps)]:
        ours, theirs = _at([run.steps for run in other]), _at([steps[run.seed] for run in other])
        yield f"{_part(other, group)} ended at {ours}, float32's at {theirs}: more than the format sets them apart."
    if finding.recovers:
        yield f"It recovered {spoken(finding.recovers)}, widening at {_at(finding.widened)}."
    elif finding.widened:
        yield f"Its words widened at {_at(finding.widened)}."
    elif finding.variant.endswith("ramp") and group.runs:
        yield "Its words never widened."
    if finding.outcome in ("worse", "diverged"):
        if (lost := group.average("lost") or 0) >= LOST:
            dropped = ", which rounding to nearest drops" if "nearest" in finding.variant else ""
            yield f"{share(lost)} of its updates were smaller than half a code{dropped}."
        if (saturated := group.average("saturated") or 0) >= SATURATED:
            yield f"{share(saturated)} of its numbers were out of range."


def names(findings: Sequence[Finding]) -> str:
    """Their variants, in a sentence."""
    return listed([spoken(finding.variant) for finding in findings])


def _part(some: Sequence[RunRecord], group: Group) -> str:
    """``1 of 4 seeds``."""
    return f"{len(some)} of {counted(len(group.runs), 'seed')}"


def _seeds(some: Sequence[RunRecord], group: Group) -> str:
    """``1 of 4 seeds (the training loss is not finite)``."""
    return f"{_part(some, group)} ({_reasons(some)})"


def _reasons(runs: Sequence[RunRecord]) -> str:
    """The first sentence of the reason, and whether there are others."""
    found = list(dict.fromkeys(run.reason.split(". ")[0].rstrip(".") for run in runs if run.reason))
    return found[0] + (", and others" if len(found) > 1 else "") if found else "no reason recorded"


def _failure(group: Group) -> str:
    """Why a variant gave no result."""
    unlogged = any(run.status == "finished" for run in group.failed)
    return f"it logged no finite {group.metric}" if unlogged else _reasons(group.failed)


def _at(steps: Sequence[int]) -> str:
    """``step 12``, ``steps 12 to 1,200``."""
    low, high = min(steps), max(steps)
    return f"step {low:,}" if low == high else f"steps {low:,} to {high:,}"
