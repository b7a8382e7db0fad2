"""Every figure of the report, from the records: name, value, unit and how it was computed."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

from lowprec_plugin.plan.table import SIZES
from lowprec_plugin.poc.run.study import Study
from lowprec_plugin.poc.run.variants import BF16, FLOAT32, TWIN
from lowprec_plugin.poc.verdict.groups import KINDS, Group, Groups
from lowprec_plugin.poc.verdict.noise import pace
from lowprec_plugin.quality import LIMIT

#: Cards that are known by their memory, in GiB.
CARDS = {size: cards for size, cards in SIZES.items() if cards}
#: Computed, not run, unless the study has it run.
BF16_MIXED = "bf16 mixed, computed"
#: By the longest name that a figure's begins with: its unit, and how it comes from the runs of its variant.
HOW = {
    "metric/": ("metric", "over the runs that finished"),
    "metric/baseline": ("metric", "float32's mean over the seeds on which float32, its twin and the variant finished"),
    "metric/difference": ("difference", "mean over these seeds of the variant minus float32"),
    "metric/standard_error": (
        "difference",
        "of that mean: the larger of the twins' and the differences' own, and of the twin the twins' "
        "(lowprec_plugin.quality)",
    ),
    "metric/noise": ("difference", "root mean square over these seeds of twin minus float32"),
    "metric/zone": ("difference", "the lesser of two standard errors and of the limit, a share of the baseline"),
    "test_mean": ("metric", "of a metric that the test logged: as metric/mean"),
    "test_": ("difference", "of a metric that the test logged: as metric/difference and metric/standard_error"),
    "held/": ("bytes", "median over the runs of held"),
    "held/total": ("bytes", "sum over the kinds"),
    "held/share": ("share", "of float32's held/total"),
    "computed/": ("bytes", "median over float32's runs of bf16: what bf16 mixed precision would hold"),
    "computed/share": ("share", "of float32's held/total"),
    "peak/": ("bytes", "median over the runs of peak"),
    "wire/sent": ("bytes", "median over the runs of sent, per step and process"),
    "wire/float32": ("bytes", "median over the runs of float32_sent"),
    "wire/share": ("share", "wire/sent over wire/float32"),
    "step/": ("ms", "median over the runs of step_ms"),
    "step/ratio": ("times", "median over the seeds of step_ms's median over float32's of the same seed"),
    "step/error": (
        "times",
        "step/ratio x 1.858 x median deviation of its logarithm / sqrt(seeds); the twins' from 0, or the seeds' own "
        "where that is larger",
    ),
    "updates/": ("share", "mean over all layers of all runs, weighted by their elements"),
    "model/": ("parameters", "parameters x memory / held/total: everything measured grows alike"),
    "model/ratio": ("times", "float32's held/total over the variant's"),
    "batch/": ("examples", "examples x (memory - what is held beside activations) / activations"),
    "cost/hours": ("hours", "step/median x median steps of the runs that finished x devices"),
    "cost/price": ("price", "cost/hours x the price per hour that was given"),
}


class Figure(NamedTuple):
    """One number of the report, in ``unit``; ``batches`` are as they were run, where examples are not known."""

    value: float
    unit: str


Figures = dict[str, dict[str, Figure]]
_Values = dict[str, float | None]


def described(name: str) -> tuple[str, str]:
    """The unit of a figure of this name, and how it is computed."""
    return HOW[max((begin for begin in HOW if name.startswith(begin)), key=len)]


def figures(groups: Groups, study: Study) -> Figures:
    """By variant and name; a variant lacks the figures that its runs do not give."""
    found = {name: _of_variant(groups, group, study) for name, group in groups.of.items()}
    computed = [run.bf16 for run in groups.float32.runs if run.bf16]
    if computed and found.get(BF16.name, {}).get("held/total") is None:
        kinds = {kind: statistics.median(held.get(kind, 0) for held in computed) for kind in KINDS}
        found[BF16_MIXED] = _held("computed", kinds, groups) | _fits(groups.float32, kinds)
    examples = {name: group.median(lambda run: run.examples) for name, group in groups.of.items()}
    examples[BF16_MIXED] = examples[FLOAT32.name]

    def unit(variant: str, name: str) -> str:
        return "batches" if name.startswith("batch/") and not examples[variant] else described(name)[0]

    return {
        variant: {name: Figure(value, unit(variant, name)) for name, value in values.items() if value is not None}
        for variant, values in found.items()
    }


def _of_variant(groups: Groups, group: Group, study: Study) -> _Values:
    sent, whole = group.median(lambda run: run.sent), group.median(lambda run: run.float32_sent)
    steps, step_ms = [run.steps for run in group.ended("finished")], group.step_ms()
    found = _metric(groups, group) | _held("held", group.kinds, groups) | _fits(group, group.kinds)
    for name in groups.tested:
        by = groups.by(name)
        shown = ("mean", "difference", "standard_error")
        tested = _metric(by, by.of[group.variant])
        found |= {f"test_{what}/{name}": tested.get(f"metric/{what}") for what in shown}
    found |= {
        "peak/bytes": group.median(lambda run: run.peak),
        "wire/sent": sent,
        "wire/float32": whole,
        "wire/share": sent / whole if sent and whole else None,
        "step/median": step_ms,
        "step/fast": group.step_ms("fast"),
        "step/slow": group.step_ms("slow"),
    }
    if paced := pace(groups, group.variant):
        found |= {"step/ratio": paced.ratio, "step/error": None if group is groups.float32 else paced.error}
    if study.price is not None and steps and step_ms:
        hours = step_ms / 3.6e6 * statistics.median(steps) * study.devices
        found |= {"cost/hours": hours, "cost/price": hours * study.price}
    return found | {f"updates/{what}": group.average(what) for what in ("saturated", "lost", "unchanged")}


def _metric(groups: Groups, group: Group) -> _Values:
    values = list(group.values.values())
    if not values:
        return {}
    found: _Values = {
        "metric/mean": math.fsum(values) / len(values),
        "metric/low": min(values),
        "metric/high": max(values),
    }
    comparison = groups.compare(group.variant)
    if comparison is None or group.variant == FLOAT32.name:
        return found
    # The twin is the yardstick: beside it stands what the others are held against.
    error = comparison.twins_error if group.variant == TWIN.name else comparison.standard_error
    return found | {
        "metric/baseline": comparison.baseline,
        "metric/difference": comparison.difference,
        "metric/standard_error": error,
        "metric/noise": comparison.noise,
        "metric/zone": min(2 * error, LIMIT * abs(comparison.baseline)),
    }


def _held(name: str, kinds: dict[str, float], groups: Groups) -> _Values:
    if not kinds:
        return {}
    total, whole = sum(kinds.values()), groups.float32.held
    found: _Values = {f"{name}/{kind}": nbytes for kind, nbytes in kinds.items()}
    ratio = whole / total if whole and total else None
    return found | {f"{name}/total": total, f"{name}/share": total / whole if whole else None, "model/ratio": ratio}


def _fits(group: Group, kinds: dict[str, float]) -> _Values:
    """The largest network of this kind, and the largest batch of this very network, by memory."""
    parameters, examples = group.median(lambda run: run.parameters), group.median(lambda run: run.examples)
    total, activations = sum(kinds.values()), kinds.get("activations", 0)
    found: _Values = {}
    for size in CARDS:
        memory = size * 2**30
        if parameters and total:
            found[f"model/{size}"] = parameters * memory / total
        if activations:
            batch = math.floor((examples or 1) * (memory - (total - activations)) / activations)
            found[f"batch/{size}"] = max(0, batch)
    return found
