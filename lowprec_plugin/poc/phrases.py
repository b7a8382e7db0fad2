"""Pieces of sentences on runs and findings."""

from __future__ import annotations

from collections.abc import Sequence

from lowprec_plugin.poc.groups import Group
from lowprec_plugin.poc.outcomes import Finding
from lowprec_plugin.poc.pace import Pace
from lowprec_plugin.poc.records import RunRecord
from lowprec_plugin.poc.words import counted, listed, significant, spoken, times


def names(findings: Sequence[Finding]) -> str:
    """Their variants, in a sentence."""
    return listed([spoken(finding.variant) for finding in findings])


def are(findings: Sequence[Finding]) -> str:
    """``is`` or ``are``."""
    return "is" if len(findings) == 1 else "are"


def part_of(some: Sequence[RunRecord], group: Group) -> str:
    """``1 of 4 seeds``."""
    return f"{len(some)} of {counted(len(group.runs), 'seed')}"


def reasons(runs: Sequence[RunRecord]) -> str:
    """The first sentence of the reason, once if it is always the same, else the first run's."""
    found = list(dict.fromkeys(run.reason.split(". ")[0].rstrip(".") for run in runs if run.reason))
    return found[0] + (", and others" if len(found) > 1 else "") if found else "no reason recorded"


def failure(group: Group) -> str:
    """Why a variant gave no result."""
    unlogged = [run for run in group.failed if run.status == "finished"]
    return f"it logged no finite {group.metric}" if unlogged else reasons(group.failed)


def at_steps(steps: Sequence[int]) -> str:
    """``step 12``, ``steps 12 to 1,200``."""
    low, high = min(steps), max(steps)
    return f"step {low:,}" if low == high else f"steps {low:,} to {high:,}"


def sentence(text: str) -> str:
    """With a capital, unless a name begins it, and a full stop."""
    first = text[:1].upper() + text[1:] if not text.startswith(("float32", "bf16")) else text
    return first if first.endswith(".") else f"{first}."


def took(found: Pace) -> str:
    """``1.30 ± 0.36 ×``; ``somewhere between 0.130 and 4.40 ×`` where an error would say no more."""
    if not found.noisy:
        return f"{found.ratio:.2f} ± {times(found.error)}"
    low, high = map(significant, found.span)
    return f"somewhere between {low} and {high} ×"


def length(group: Group, float32: Group) -> str:
    """What sets finished runs apart besides their format, where they made other numbers of steps; empty if none did."""
    steps = {run.seed: run.steps for run in float32.ended("finished")}
    other = [run for run in group.ended("finished") if run.steps != steps.get(run.seed, run.steps)]
    if not other:
        return ""
    theirs = at_steps([steps[run.seed] for run in other])
    return (
        f"{part_of(other, group)} ended at {at_steps([run.steps for run in other])} and float32's at {theirs}: what "
        "ends runs at steps of their own, or changes their batches, sets them apart besides the format"
    )
