"""From the runs to a verdict: what is found, in words, and what to do next. No file is read or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowprec_plugin.poc.advice import advice
from lowprec_plugin.poc.groups import Groups
from lowprec_plugin.poc.outcomes import Baseline, Finding, baseline, findings
from lowprec_plugin.poc.records import RunRecord
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


def judge(
    runs: Sequence[RunRecord],
    metric: str,
    mode: str,
    variants: Sequence[str] = (),
    tolerance: float | str | None = None,
) -> Verdict:
    """Judge every variant by ``metric``, of which more is better if ``mode`` is ``"max"``.

    Args:
        runs: of all variants and seeds, in any order.
        variants: their order, and those that have no run yet.
        tolerance: by how much a variant may be worse: a number in the metric's units, or text such as ``"2%"`` of
            float32's; ``None``: what is not equal is worse, or open.
    """
    groups = Groups.make(runs, metric, mode, variants, tolerance)
    scale = Scale.of(metric, [value for group in groups.of.values() for value in group.values.values()])
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
