"""The verdict in words: every sentence is a template here, filled with facts on a variant or on the baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowprec_plugin.poc.run.metrics import Scale
from lowprec_plugin.poc.run.study import RunRecord
from lowprec_plugin.poc.run.variants import spoken
from lowprec_plugin.poc.verdict.curves import learned, training_loss
from lowprec_plugin.poc.verdict.groups import Group, Groups
from lowprec_plugin.poc.verdict.noise import allowed, pace
from lowprec_plugin.poc.verdict.outcomes import PRACTICAL, SPOKEN, Baseline, Finding, Outcome, may_be_chance
from lowprec_plugin.quality import LIMIT, MIN_SEEDS, Comparison
from lowprec_plugin.text.numbers import counted, listed, rough, share, significant, times

#: Words of a headline, at most.
WORDS = 25
#: A baseline that is not fit to compare with: the headline, and what is wrong in full.
UNFIT: dict[Baseline, tuple[str, str]] = {
    "diverged": ("{who} diverged", "{whose} diverged on {diverged} ({reasons})."),
    "flat": (
        "float32 itself learned nothing",
        "float32 itself learned nothing on {flat}: its {loss} did not fall, and {metric} got no better.",
    ),
    "one": (
        "float32's seeds make no difference",
        "float32's runs of {seeds} are the same, as if the module or its data set a seed of their own: nothing shows "
        "what another seed would do.",
    ),
    "failed": ("{who} gave no result", "{whose} gave no result: {failure}."),
    "no run": ("{who} has not run yet", "{whose} has not run yet."),
}
UNSTABLE = "float32 itself diverged on {yardsticks}: this training is unstable."
TOO_SHORT = "These runs had {steps}, too few to show what a format does."
#: Fewer steps than these, and lost updates have not added up to anything yet.
SHORT = 50
#: What is found of a variant, by outcome, and by case where an outcome has several.
FOUND = {
    "equal": "{name} is within seed noise of float32 ({evidence}).",
    "tolerated": "{name} is within the {allowed} you allow ({evidence}), but not shown to be equal to float32. {bound}",
    "worse": "{name} is worse than float32 ({evidence}), beyond seed noise{small}.",
    "better": "{name} differs from float32 beyond seed noise, in its favour ({evidence}). That is a difference, not a "
    "promise: do not count on it elsewhere.",
    "unsettled": "{name} is not settled: its difference ({evidence}) is within two standard errors, but above the "
    "{limit} that count as equal; {needed} it. {bound}",
    "unsettled, stuck": "{name} is not settled: {metric} cannot tell, because every run ended at {end}, float32's too.",
    "unsettled, diverged": "{name} is not settled: it diverged on {diverged} ({reasons}), but float32 itself on "
    "{yardsticks}, so precision need not be the cause.",
    "few seeds": "No verdict on {name}{so_far}: it takes {least} seeds on which float32, its twin and the variant "
    "finish, {missing} more.",
    "diverged": "{name} diverged on {diverged} ({reasons}), float32 on none.",
    "failed": "{name} gave no result: {failure}.",
    "no run": "{name} has not run yet.",
    "no yardstick, diverged": "{name} diverged on {diverged}: without a sound float32 this says nothing.",
    "no yardstick, failed": "{name} gave no result: {failure}.",
    "no yardstick": "{name} ended at {mean}, the mean of {runs}: without a sound float32 this says nothing.",
}
#: What is added to it, where there is such a fact.
ADDED = {
    "unseen": "{seeds} cannot show differences below {unseen}.",
    "many": "It is one of {many} comparisons, and one in twenty comes out so by chance: repeat it.",
    "part_failed": "{part_failed} gave no result: {failure}.",
    "other": "{other} ended at {ours}, float32's at {theirs}: more than the format sets these runs apart.",
    "recovered": "It recovered {recovered}, widening at {at}.",
    "widened": "Its words widened at {widened}.",
    "never": "Its words never widened.",
    "lost": "{lost} of its updates were smaller than half a code{dropped}.",
    "saturated": "{saturated} of its numbers were out of range.",
}
#: Shares from which on lost updates and numbers out of range are mentioned.
LOST, SATURATED = 0.1, 0.01


@dataclass(frozen=True)
class Overview:
    """All that was found."""

    groups: Groups
    scale: Scale
    baseline: Baseline
    findings: Sequence[Finding]

    def found(self, *outcomes: Outcome) -> list[Finding]:
        """The variants that came out so."""
        return [finding for finding in self.findings if finding.outcome in outcomes]

    @property
    def steps(self) -> int:
        """The most that a run of float32 made."""
        return max((run.steps for run in self.groups.float32.runs), default=0)

    @property
    def yardsticks(self) -> str:
        """How many runs of float32 and its twin diverged."""
        runs = self.groups.float32.runs + self.groups.twin.runs
        return f"{sum(run.status == 'diverged' for run in runs)} of {len(runs)} runs"

    def is_stuck(self, finding: Finding) -> bool:
        """Whether it is not settled because every run ended at one value."""
        return finding.outcome == "unsettled" and not finding.diverged and self.groups.stuck(finding.variant)


def headline(view: Overview) -> str:
    """All of it in at most ``WORDS`` words."""
    if view.baseline in UNFIT:
        return f"{_filled(UNFIT[view.baseline][0], _of_baseline(view))}: this comparison says nothing about precision."
    said, rest = "", len(view.findings)
    for outcome, spoken_as in SPOKEN.items():
        if some := view.found(outcome):
            are = "is" if len(some) == 1 else "are"
            clause = spoken_as.predicate.format(are=are, allowed=allowed(view.groups.tolerance))
            ways = [f"{said}{'; ' if said else ''}{who} {clause}" for who in (names(some), f"{len(some)} variants")]
            longer = next((each for each in ways if len(each.split()) <= WORDS - 3), "")
            if not longer:
                return _capital(f"{said}; {counted(rest, 'other')} below.")
            said, rest = longer, rest - len(some)
    return _capital(f"{said or 'nothing was compared with float32'}.")


def caution(view: Overview) -> str:
    """What is wrong with the baseline, or with the length of the runs; empty if nothing is."""
    if view.baseline in UNFIT:
        return _filled(UNFIT[view.baseline][1], _of_baseline(view))
    unstable = [UNSTABLE] if view.baseline == "unstable" else []
    short = [TOO_SHORT] if view.steps < SHORT else []
    return " ".join(_filled(each, _of_baseline(view)) for each in [*unstable, *short])


def _of_baseline(view: Overview) -> dict[str, str]:
    groups = view.groups
    bad = next((group for group in (groups.float32, groups.twin) if not group.values), groups.float32)
    itself = bad is groups.float32
    flat = [run for run in bad.runs if learned(run, groups.metric, groups.higher_is_better) is False]
    return {
        "who": "float32 itself" if itself else "float32's twin",
        "whose": "float32 itself" if itself else "float32's twin, which measures the noise,",
        "diverged": part_of(bad.ended("diverged"), bad),
        "reasons": reasons(bad.ended("diverged")),
        "flat": part_of(flat, bad),
        "loss": str(training_loss(groups.float32.runs)),
        "metric": groups.metric,
        "seeds": counted(len(bad.values), "seed"),
        "failure": failure(bad),
        "yardsticks": view.yardsticks,
        "steps": counted(view.steps, "step"),
    }


def sentence(view: Overview, finding: Finding) -> str:
    """What is found of one variant, with the evidence and its uncertainty."""
    group = view.groups.of[finding.variant]
    facts = _of_runs(view, finding, group)
    if finding.comparison is not None:
        facts |= _of_comparison(view, finding, finding.comparison)
    case: str = finding.outcome
    if view.is_stuck(finding):
        case += ", stuck"
    elif finding.outcome in ("unsettled", "no yardstick") and finding.diverged:
        case += ", diverged"
    elif finding.outcome == "no yardstick" and not group.values:
        case += ", failed"
    return " ".join(_filled(each, facts) for each in (FOUND[case], *(ADDED[name] for name in ADDED if name in facts)))


def _of_runs(view: Overview, finding: Finding, group: Group) -> dict[str, str]:
    values = list(group.values.values())
    facts = {
        "name": spoken(finding.variant),
        "metric": group.metric,
        "allowed": allowed(view.groups.tolerance),
        "diverged": part_of(group.ended("diverged"), group),
        "reasons": reasons(group.ended("diverged")),
        "yardsticks": view.yardsticks,
        "failure": failure(group),
        "so_far": "",
        "least": str(MIN_SEEDS),
        "missing": str(MIN_SEEDS - len(finding.seeds)),
        "seeds": counted(len(finding.seeds), "seed"),
        "limit": f"{100 * LIMIT:.1f} %",
    }
    if values:
        facts["mean"] = f"{group.metric} {view.scale.value(math.fsum(values) / len(values))}"
        facts["runs"] = counted(len(values), "run")
    if values and group.failed:
        facts["part_failed"] = part_of(group.failed, group)
    steps = {run.seed: run.steps for run in view.groups.float32.ended("finished")}
    if other := [run for run in group.ended("finished") if run.steps != steps.get(run.seed, run.steps)]:
        facts["other"] = part_of(other, group)
        facts["ours"] = at_steps([run.steps for run in other])
        facts["theirs"] = at_steps([steps[run.seed] for run in other])
    if finding.recovers:
        facts |= {"recovered": spoken(finding.recovers), "at": at_steps(finding.widened)}
    elif finding.widened:
        facts["widened"] = at_steps(finding.widened)
    elif finding.variant.endswith("ramp") and group.runs:
        facts["never"] = ""
    if finding.outcome in ("worse", "diverged"):
        if (lost := group.average("lost") or 0) >= LOST:
            facts["lost"] = share(lost)
            facts["dropped"] = ", which rounding to nearest drops" if "nearest" in finding.variant else ""
        if (saturated := group.average("saturated") or 0) >= SATURATED:
            facts["saturated"] = share(saturated)
    return facts


def _of_comparison(view: Overview, finding: Finding, found: Comparison) -> dict[str, str]:
    scale, error, size = view.scale, 2 * found.standard_error, abs(found.baseline)
    evidence = (
        f"{view.groups.metric} {scale.value(found.setting)} against {scale.value(found.baseline)}, "
        f"{scale.difference(found.difference, found.standard_error)} over {counted(len(finding.seeds), 'seed')}"
    )
    bound, seeds = found.worse(higher_is_better=view.groups.higher_is_better) + error, finding.seeds_to_settle
    part = f" ({rough(100 * bound / size)} % of float32's)" if 0 < bound <= size else ""  # near zero it says nothing
    worse = f"With two standard errors added it is {scale.distance(bound)} worse{part}."
    facts = {
        "evidence": evidence,
        "so_far": f" ({evidence})",
        "end": scale.value(found.baseline),
        "small": f" though below {100 * LIMIT:.1f} %" if abs(found.difference) < LIMIT * size else "",
        "needed": f"about {seeds} seeds would settle" if seeds <= PRACTICAL else "no practical number of seeds settles",
        "bound": worse if bound > 0 else "Even with two standard errors added it is not worse.",
    }
    if finding.outcome == "equal" and error > LIMIT * size:
        facts["unseen"] = scale.distance(error)
    if finding.outcome in ("worse", "better") and may_be_chance(finding, view.findings):
        facts["many"] = str(sum(each.comparison is not None for each in view.findings))
    return facts


def cost(groups: Groups, variant: str) -> str:
    """Bytes and time beside float32's."""
    held, whole, found = groups.of[variant].held, groups.float32.held, pace(groups, variant)
    said = [f"It held {100 * held / whole:.0f} % of float32's bytes."] if held and whole else []
    if found:
        took = f"{found.ratio:.2f} ± {times(found.error)}"
        if found.noisy:
            took = "somewhere between {} and {} ×".format(*map(significant, found.span))
        step = f"step took {took} float32's time"
        unclear = "this shows no difference" if found.seeds > 1 else "one seed is too few to tell"
        said.append(f"{found.word.capitalize()}: a {step}." if found.word else f"A {step}: {unclear}.")
    elif all(group.step_ms() for group in (groups.of[variant], groups.float32, groups.twin)):
        said.append("Its step time is not compared: no command timed it with float32 and its twin on one seed.")
    return " ".join(said)


def names(findings: Sequence[Finding]) -> str:
    """Their variants, in a sentence."""
    return listed([spoken(finding.variant) for finding in findings])


def part_of(some: Sequence[RunRecord], group: Group) -> str:
    """``1 of 4 seeds``."""
    return f"{len(some)} of {counted(len(group.runs), 'seed')}"


def reasons(runs: Sequence[RunRecord]) -> str:
    """The first sentence of the reason, and whether there are others."""
    found = list(dict.fromkeys(run.reason.split(". ")[0].rstrip(".") for run in runs if run.reason))
    return found[0] + (", and others" if len(found) > 1 else "") if found else "no reason recorded"


def failure(group: Group) -> str:
    """Why a variant gave no result."""
    unlogged = any(run.status == "finished" for run in group.failed)
    return f"it logged no finite {group.metric}" if unlogged else reasons(group.failed)


def at_steps(steps: Sequence[int]) -> str:
    """``step 12``, ``steps 12 to 1,200``."""
    low, high = min(steps), max(steps)
    return f"step {low:,}" if low == high else f"steps {low:,} to {high:,}"


def _filled(template: str, facts: dict[str, str]) -> str:
    return _capital(template.format(**facts))


def _capital(text: str) -> str:
    """With a capital, unless a name begins it."""
    return text if text.startswith(("float32", "bf16")) else text[:1].upper() + text[1:]
