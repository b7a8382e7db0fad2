"""The verdict in plain words: a headline, and for every variant a sentence with its evidence and uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowprec_plugin.poc.curves import learned, training_loss
from lowprec_plugin.poc.groups import Groups
from lowprec_plugin.poc.outcomes import (
    PRACTICAL,
    Baseline,
    Finding,
    Outcome,
    is_short,
    may_be_chance,
    of,
    seeds_to_settle,
)
from lowprec_plugin.poc.pace import pace
from lowprec_plugin.poc.phrases import are, at_steps, failure, length, names, part_of, reasons, sentence, took
from lowprec_plugin.poc.words import Scale, allowed, counted, listed, rough, share, spoken
from lowprec_plugin.quality import LIMIT, MIN_SEEDS

#: From here on an evidence in the counted updates is worth a word.
LOST, SATURATED = 0.1, 0.01


@dataclass(frozen=True)
class Words:
    """Writes sentences on one comparison."""

    groups: Groups
    scale: Scale
    baseline: Baseline
    findings: Sequence[Finding]

    def headline(self) -> str:
        """All of it in one sentence."""
        if self.baseline not in ("sound", "unstable"):
            return f"{self.baseline_sentence()} This comparison says nothing of precision."
        clauses = []
        if is_short(self.groups):
            clauses.append(f"these runs had {counted(self.groups.steps, 'step')}, too few to show what a format does")
        if self.baseline == "unstable":
            clauses.append(f"float32 itself diverged on {self._yardsticks_diverged()}")
        equal = [each for each in of(self.findings, "equal") if each.recovers is None]
        if equal:
            evidence = self.evidence(equal[0]) if len(equal) == 1 else self._range(equal)
            clauses.append(f"{names(equal)} {are(equal)} within seed noise of float32 ({evidence})")
        if within := of(self.findings, "tolerated"):
            clauses.append(f"{names(within)} {are(within)} within the {self.allowed} that you allow")
        worse = of(self.findings, "worse")
        if worse:
            each = [
                f"{spoken(finding.variant)} ({self.difference(finding)}"
                f"{', which may be chance' if may_be_chance(finding, self.findings) else ''})"
                for finding in worse
            ]
            clauses.append(f"{listed(each)} {are(worse)} {'not' if equal and not within else 'worse than float32'}")
        for finding in worse:
            clauses += self._recovered(finding, "it" if len(worse) == 1 else spoken(finding.variant))
        for finding in of(self.findings, "diverged"):
            clauses.append(f"{spoken(finding.variant)} diverged on {self._diverged(finding)} and float32 on none")
            clauses += self._recovered(finding, "it")
        for finding in of(self.findings, "better"):
            clauses.append(f"{spoken(finding.variant)} differs, in its favour ({self.difference(finding)})")
        remaining: list[tuple[Outcome, str]] = [
            ("unsettled", "not settled"), ("few seeds", f"without a verdict, which needs {MIN_SEEDS} seeds"),
            ("failed", "without a result"), ("no run", "not run yet"),
        ]  # fmt: skip
        for outcome, text in remaining:
            if some := of(self.findings, outcome):
                clauses.append(f"{names(some)} {are(some)} {text}")
        if stuck := self.stuck:
            clauses.append(f"for {names(stuck)} {self._cannot_tell(stuck[0])}")
        if len(equal) > 1:
            clauses.append("of those that are equal, none is shown to be better than another")
        return sentence("; ".join(clauses) or "nothing was compared with float32")

    @property
    def stuck(self) -> list[Finding]:
        """Those that are not settled because every run ended at one value."""
        unsettled = [each for each in of(self.findings, "unsettled") if not each.diverged]
        return [each for each in unsettled if self.groups.stuck(each.variant) is not None]

    def _cannot_tell(self, finding: Finding) -> str:
        value = self.scale.value(finding.compared.baseline)
        return f"{self.groups.metric} cannot tell: every run ended at {value}, float32's too"

    def sentence(self, finding: Finding) -> str:
        """What is found of one variant, with the evidence, and what it costs."""
        name, group = spoken(finding.variant), self.groups.of[finding.variant]
        said = {
            "equal": self._equal,
            "tolerated": self._tolerated,
            "worse": self._worse,
            "better": lambda f: (
                f"{name} differs from float32 by more than seed noise, in its favour ({self.evidence(f)}). That is a "
                f"difference, not a promise: do not count on it elsewhere{self._by_chance(f)}"
            ),
            "unsettled": self._unsettled,
            "few seeds": self._few_seeds,
            "diverged": lambda f: f"{name} diverged on {self._diverged(f)} ({self.reasons(f)}); float32 on none",
            "failed": lambda f: f"{name} gave no result: {failure(group)}",
            "no run": lambda f: f"{name} has no run yet",
            "no yardstick": self._no_yardstick,
        }[finding.outcome](finding)
        failed = (
            f"{part_of(group.failed, group)} gave no result: {failure(group)}" if group.values and group.failed else ""
        )
        more = (failed, length(group, self.groups.float32), self._ramp(finding), *self._numerical(finding))
        return " ".join(sentence(each) for each in (said, *more) if each)

    def evidence(self, finding: Finding) -> str:
        """``val_accuracy 97.42 % against 97.51 %, −0.09 ± 0.05 points over 4 seeds``."""
        found = finding.compared
        return (
            f"{self.groups.metric} {self.scale.value(found.setting)} against {self.scale.value(found.baseline)}, "
            f"{self.difference(finding)} over {counted(len(finding.seeds), 'seed')}"
        )

    def difference(self, finding: Finding) -> str:
        """From float32, with its standard error."""
        found = finding.compared
        return self.scale.difference(found.difference, found.standard_error)

    def cost(self, variant: str) -> str:
        """Bytes and time beside float32's, slower or not."""
        held, found = self.groups.share_held(variant), pace(self.groups, variant)
        parts = [f"It held {100 * held:.0f} % of float32's bytes."] if held else []
        if found:
            step = f"step took {took(found)} float32's time"
            shown = "no difference that is shown" if found.seeds > 1 else "one seed is too few to tell"
            parts.append(f"{found.word.capitalize()}: a {step}." if found.word else f"A {step}: {shown}.")
        elif self.groups.of[variant].step_ms and self.groups.float32.step_ms and self.groups.twin.step_ms:
            parts.append("Its step time is not compared: no seed was timed with float32 and its twin by one command.")
        return " ".join(parts)

    def _range(self, findings: Sequence[Finding]) -> str:
        """Of several variants: what their differences and errors lie between."""
        differences = [each.compared.difference for each in findings]
        error = max(each.compared.standard_error for each in findings)
        seeds = sorted({len(each.seeds) for each in findings})
        low, high = (self.scale.signed(difference) for difference in (min(differences), max(differences)))
        return (
            f"{self.groups.metric} {self.scale.value(findings[0].compared.baseline)}, differences {low} to {high}"
            f"{self.scale.difference_unit}, standard errors up to {self.scale.distance(error)}, over "
            f"{listed([str(count) for count in seeds])} seeds"
        )

    def baseline_sentence(self) -> str:
        """What is wrong with float32; empty if nothing is."""
        groups = self.groups
        bad = next((group for group in (groups.float32, groups.twin) if not group.values), groups.float32)
        name = "float32 itself" if bad is groups.float32 else "float32's twin, by which the noise is measured,"
        if self.baseline == "diverged":
            diverged = bad.ended("diverged")
            return sentence(f"{name} diverged on {part_of(diverged, bad)} ({reasons(diverged)})")
        if self.baseline == "flat":
            loss = training_loss(groups.float32.runs)
            flat = [run for run in bad.runs if learned(run, groups.metric, groups.higher_is_better) is False]
            return sentence(
                f"float32 itself learned nothing on {part_of(flat, bad)}: its {loss} did not fall, and {groups.metric} "
                "got no better"
            )
        if self.baseline == "one":
            return sentence(
                f"float32's runs of {counted(len(bad.values), 'seed')} are one and the same, as where a module or its "
                "data set a seed of their own: nothing shows what another seed would make of them"
            )
        if self.baseline == "failed":
            return sentence(f"{name} gave no result: {failure(bad)}")
        if self.baseline == "no run":
            return sentence(f"{name} has no run yet")
        if self.baseline == "unstable":
            return sentence(f"float32 itself diverged on {self._yardsticks_diverged()}: this training is unstable")
        return ""

    def _equal(self, finding: Finding) -> str:
        said = f"{spoken(finding.variant)} is within seed noise of float32 ({self.evidence(finding)})"
        found = finding.compared
        seen = 2 * found.standard_error
        if seen <= LIMIT * abs(found.baseline):
            return said
        return (
            f"{said}. {counted(len(finding.seeds), 'seed')} cannot show differences below {self.scale.distance(seen)}"
        )

    @property
    def allowed(self) -> str:
        """The tolerance as the user gave it."""
        return allowed(self.groups.tolerance)

    def _tolerated(self, finding: Finding) -> str:
        return (
            f"{spoken(finding.variant)} is within the {self.allowed} that you allow ({self.evidence(finding)}), though "
            f"it is not shown to be equal to float32. {self._at_worst(finding)}"
        )

    def _worse(self, finding: Finding) -> str:
        found = finding.compared
        small = abs(found.difference) < LIMIT * abs(found.baseline)
        end = f", beyond seed noise though below {100 * LIMIT:.1f} %" if small else ", beyond seed noise"
        return (
            f"{spoken(finding.variant)} is worse than float32 ({self.evidence(finding)}){end}{self._by_chance(finding)}"
        )

    def _by_chance(self, finding: Finding) -> str:
        """Who compares many variants finds differences where there are none; empty if this one is large or alone."""
        if not may_be_chance(finding, self.findings):
            return ""
        many = sum(each.comparison is not None for each in self.findings)
        return f". It was one of {many} comparisons, and by chance one in twenty comes out so: repeat with other seeds"

    def _unsettled(self, finding: Finding) -> str:
        name = spoken(finding.variant)
        if finding.diverged:
            return (
                f"{name} is not settled: it diverged on {self._diverged(finding)} ({self.reasons(finding)}), but "
                f"float32 itself on {self._yardsticks_diverged()}, so that this need not be the precision"
            )
        if finding in self.stuck:
            return f"{name} is not settled: {self._cannot_tell(finding)}"
        return (
            f"{name} is not settled: its difference ({self.evidence(finding)}) is within two standard errors, but "
            f"above the {100 * LIMIT:.1f} % that count as equal; {self._to_settle(finding)}. {self._at_worst(finding)}"
        )

    def _at_worst(self, finding: Finding) -> str:
        """The bound that an open question has nevertheless."""
        found = finding.compared
        bound = found.worse(higher_is_better=self.groups.higher_is_better) + 2 * found.standard_error
        if bound <= 0:
            return "Even two standard errors away it is not worse"
        near_zero = bound > abs(found.baseline)  # where a share of it says nothing
        part = "" if near_zero else f" ({rough(100 * bound / abs(found.baseline))} % of float32's)"
        return f"Two standard errors away it is {self.scale.distance(bound)} worse{part}, and hardly more"

    def _to_settle(self, finding: Finding) -> str:
        needed = seeds_to_settle(finding)
        if needed > PRACTICAL:
            return "no practical number of seeds settles it"
        return f"about {needed} seeds would settle it"

    def _few_seeds(self, finding: Finding) -> str:
        missing = MIN_SEEDS - len(finding.seeds)
        so_far = f" ({self.evidence(finding)})" if finding.comparison else ""
        return (
            f"no verdict on {spoken(finding.variant)}{so_far}: it takes {MIN_SEEDS} seeds on which float32, its twin "
            f"and the variant finish, {missing} more"
        )

    def _no_yardstick(self, finding: Finding) -> str:
        group = self.groups.of[finding.variant]
        name, nothing = spoken(finding.variant), "with no sound float32 beside it, this says nothing of its precision"
        if finding.diverged:
            return f"{name} diverged on {self._diverged(finding)}: {nothing}"
        if not group.values:
            return f"{name} gave no result: {failure(group)}"
        mean = self.scale.value(math.fsum(group.values.values()) / len(group.values))
        return (
            f"{name} ended at {self.groups.metric} {mean}, the mean of {counted(len(group.values), 'run')}: {nothing}"
        )

    def _recovered(self, finding: Finding, name: str) -> list[str]:
        return [
            f"the ramp recovered {name}, widening at {at_steps(each.widened)}"
            for each in self.findings
            if each.recovers == finding.variant
        ]

    def _ramp(self, finding: Finding) -> str:
        if finding.recovers:
            return f"it recovered {spoken(finding.recovers)}, widening at {at_steps(finding.widened)}"
        if finding.widened:
            return f"its words widened at {at_steps(finding.widened)}"
        return (
            "its words never widened"
            if finding.variant.endswith("ramp") and self.groups.of[finding.variant].runs
            else ""
        )

    def _numerical(self, finding: Finding) -> list[str]:
        """What the counted updates say of a variant that is worse."""
        if finding.outcome not in ("worse", "diverged"):
            return []
        group, said = self.groups.of[finding.variant], []
        if (lost := group.average("lost")) is not None and lost >= LOST:
            drops = ", which rounding to nearest drops" if "nearest" in finding.variant else ""
            said.append(f"{share(lost)} of its updates were smaller than half a code{drops}")
        if (saturated := group.average("saturated")) is not None and saturated >= SATURATED:
            said.append(f"{share(saturated)} of its numbers were out of range")
        return said

    def _diverged(self, finding: Finding) -> str:
        group = self.groups.of[finding.variant]
        return part_of(group.ended("diverged"), group)

    def _yardsticks_diverged(self) -> str:
        groups = self.groups
        runs = groups.float32.runs + groups.twin.runs
        return f"{sum(run.status == 'diverged' for run in runs)} of {len(runs)} runs"

    def reasons(self, finding: Finding) -> str:
        """Why its runs diverged."""
        return reasons(self.groups.of[finding.variant].ended("diverged"))
