"""From the runs to a verdict: what is found, in words, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass

from lowprec_plugin.poc.run.metrics import Scale
from lowprec_plugin.poc.verdict.advice import advice
from lowprec_plugin.poc.verdict.groups import Groups
from lowprec_plugin.poc.verdict.outcomes import Baseline, Finding, baseline, findings
from lowprec_plugin.poc.verdict.sentences import Overview, caution, cost, headline, sentence


@dataclass(frozen=True)
class Verdict:
    """What the runs say.

    Attributes:
        headline: all of it in one sentence.
        baseline: whether float32 is fit to compare with.
        caution: what is wrong with it, or with the length of the runs; empty if nothing is.
        findings: one for each variant that is compared with float32, in order.
        sentences, costs: by variant: the evidence with its uncertainty, and bytes and time beside float32's.
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
    view = Overview(groups, scale, baseline(groups), found)
    sentences = {each.variant: sentence(view, each) for each in found}
    costs = {each.variant: cost(groups, each.variant) for each in found}
    return Verdict(headline(view), view.baseline, caution(view), found, sentences, costs, advice(view), scale)
