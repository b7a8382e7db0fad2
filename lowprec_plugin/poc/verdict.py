"""From the runs to a verdict: what is found, in words, and what to do next. No file is read or written."""

from __future__ import annotations

from dataclasses import dataclass

from lowprec_plugin.poc.advice import advice
from lowprec_plugin.poc.groups import Groups
from lowprec_plugin.poc.outcomes import Baseline, Finding, baseline, findings
from lowprec_plugin.poc.wording import Words
from lowprec_plugin.poc.words import Scale


@dataclass(frozen=True)
class Verdict:
    """What the runs say.

    Attributes:
        headline: all of it in one sentence.
        baseline: whether float32 is fit to compare with; ``caution``: what is wrong with it, empty if nothing is.
        findings: one for each variant that is compared with float32, in order.
        sentences: by variant: what is found, with the evidence and its uncertainty.
        costs: by variant: bytes and time beside float32's, in words.
        next: what to do, in order.
        scale: how the metric is written.
    """

    headline: str
    baseline: Baseline
    caution: str
    findings: list[Finding]
    sentences: dict[str, str]
    costs: dict[str, str]
    next: list[str]
    scale: Scale


def judge(groups: Groups) -> Verdict:
    """Judge every variant by the metric of ``groups``."""
    scale = Scale.of(groups.metric, [value for group in groups.of.values() for value in group.values.values()])
    found = findings(groups)
    words = Words(groups, scale, baseline(groups), found)
    return Verdict(
        words.headline(),
        words.baseline,
        words.baseline_sentence(),
        found,
        {each.variant: words.sentence(each) for each in found},
        {each.variant: words.cost(each.variant) for each in found},
        advice(words),
        scale,
    )
