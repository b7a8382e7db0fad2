"""From the runs to a verdict: what is found, in words, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass

from lowprec_plugin.poc.run.metrics import Scale
from lowprec_plugin.poc.verdict.advice import advice
from lowprec_plugin.poc.verdict.groups import Groups
from lowprec_plugin.poc.verdict.outcomes import Baseline, Finding, Overview, baseline, findings
from lowprec_plugin.poc.verdict.sentences import caution, headline, sentence


@dataclass(frozen=True)
class Verdict:
    """What the runs say."""

    headline: str  # all of it in one sentence
    baseline: Baseline  # whether float32 is fit to compare with
    caution: str  # what is wrong with it, or with the length of the runs; empty if nothing is
    findings: list[Finding]  # one for each variant that is compared with float32, in order
    sentences: dict[str, str]  # by variant: the evidence with its uncertainty
    next: list[str]  # what to do, in order
    scale: Scale  # how the metric is written


def judge(groups: Groups) -> Verdict:
    """Judge every variant by the metric of ``groups``."""
    scale = Scale.of(groups.metric, [value for group in groups.of.values() for value in group.values.values()])
    found = findings(groups)
    view = Overview(groups, scale, baseline(groups), found)
    sentences = {each.variant: sentence(view, each) for each in found}
    return Verdict(headline(view), view.baseline, caution(view), found, sentences, advice(view), scale)
