"""Every figure of the report, from the records: name, value, unit and how it was computed."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

from lowprec_plugin.plan.table import SIZES
from lowprec_plugin.poc.groups import BF16, KINDS, Group, Groups
from lowprec_plugin.poc.pace import pace
from lowprec_plugin.poc.study import Study
from lowprec_plugin.poc.variants import FLOAT32, TWIN

#: Cards that are known by their memory, in GiB.
CARDS = {size: cards for size, cards in SIZES.items() if cards}
#: Computed, not run, unless the study has it run.
BF16_MIXED = "bf16 mixed, computed"
#: How each figure comes from the runs of its variant: the longest name that it begins with.
HOW = {
    "metric/": "over the runs that finished",
    "metric/baseline": "float32's mean over the seeds on which float32, its twin and the variant finished",
    "metric/difference": "mean over these seeds of the variant minus float32",
    "metric/standard_error": "of that mean: the larger of the twins' and the differences' own, and of the twin the "
    "twins' (lowprec_plugin.quality)",
    "metric/noise": "root mean square over these seeds of twin minus float32",
    "metric/zone": "the lesser of two standard errors and of the limit, a share of the baseline",
    "test_": "of a metric that the test logged: as metric/mean, metric/difference and metric/standard_error",
    "held/": "median over the runs of held",
    "held/total": "sum over the kinds",
    "held/share": "of float32's held/total",
    "computed/": "median over float32's runs of bf16: what bf16 mixed precision would hold",
    "peak/": "median over the runs of peak",
    "wire/sent": "median over the runs of sent, per step and process",
    "wire/float32": "median over the runs of float32_sent",
    "wire/share": "wire/sent over wire/float32",
    "step/": "median over the runs of step_ms",
    "step/ratio": "median over the seeds of step_ms's median over that of float32's run of the same seed",
    "step/error": "step/ratio x 1.858 x median deviation of its logarithm / sqrt(seeds); the twins' from 0, or the "
    "seeds' own where that is larger",
    "updates/": "mean over all layers of all runs, weighted by their elements",
    "model/": "parameters x memory / held/total: everything measured grows alike",
    "model/ratio": "float32's held/total over the variant's",
    "batch/": "examples x (memory - what is held beside activations) / activations; in batches: without examples",
    "cost/hours": "step/median x median steps of the runs that finished x devices",
    "cost/price": "cost/hours x the price per hour that was given",
}


class Figure(NamedTuple):
    """One number of the report.

    Attributes:
        value: in ``unit``: ``bytes``, ``ms``, ``hours``, ``price``, ``parameters``, ``examples``, ``batches`` (as they
            were run), ``share`` and ``times`` (of float32's), ``metric`` and ``difference`` in the metric's own units.
    """

    value: float
    unit: str


Figures = dict[str, dict[str, Figure]]


def how(name: str) -> str:
    """How a figure of this name is computed."""
    return HOW[max((begin for begin in HOW if name.startswith(begin)), key=len)]


def figures(groups: Groups, study: Study, limit: float) -> Figures:
    """By variant and name. A variant lacks the figures that its runs do not give; ``limit`` is that of *equal*."""
    found = {name: _of_variant(groups, group, study, limit) for name, group in groups.of.items()}
    computed = [run.bf16 for run in groups.float32.runs if run.bf16]
    if computed and "held/total" not in found.get(BF16, {}):
        kinds = {kind: statistics.median(held.get(kind, 0) for held in computed) for kind in KINDS}
        found[BF16_MIXED] = _held("computed", kinds, groups) | _fits(groups, groups.float32, kinds)
    return found


def _of_variant(groups: Groups, group: Group, study: Study, limit: float) -> dict[str, Figure]:
    sent, whole = group.median(lambda run: run.sent), group.median(lambda run: run.float32_sent)
    found = {
        **_metric(groups, group, limit),
        **_tested(groups, group.variant, limit),
        **_held("held", group.kinds, groups),
        **_some("peak/bytes", group.median(lambda run: run.peak), "bytes"),
        **_some("wire/sent", sent, "bytes"),
        **_some("wire/float32", whole, "bytes"),
        **_some("wire/share", sent / whole if sent and whole else None, "share"),
        **_some("step/median", group.step_ms, "ms"),
        **_some("step/fast", group.median(lambda run: run.step_ms.get("fast", 0.0)), "ms"),
        **_some("step/slow", group.median(lambda run: run.step_ms.get("slow", 0.0)), "ms"),
        **_pace(groups, group.variant),
        **_fits(groups, group, group.kinds),
        **_cost(group, study),
    }
    for what in ("saturated", "lost", "unchanged"):
        found |= _some(f"updates/{what}", group.average(what), "share")
    return found


def _pace(groups: Groups, variant: str) -> dict[str, Figure]:
    found = pace(groups, variant)
    if found is None:
        return {}
    ratio = {"step/ratio": Figure(found.ratio, "times")}
    return ratio if variant == FLOAT32.name else ratio | {"step/error": Figure(found.error, "times")}


def _metric(groups: Groups, group: Group, limit: float) -> dict[str, Figure]:
    values = list(group.values.values())
    if not values:
        return {}
    mean = math.fsum(values) / len(values)
    found = {
        "metric/mean": Figure(mean, "metric"),
        "metric/low": Figure(min(values), "metric"),
        "metric/high": Figure(max(values), "metric"),
    }
    comparison = groups.compare(group.variant)
    if comparison is None or group.variant == FLOAT32.name:
        return found
    # The twin is the yardstick: beside it stands what the others are held against.
    error = comparison.twins_error if group.variant == TWIN.name else comparison.standard_error
    zone = min(2 * error, limit * abs(comparison.baseline))
    return found | {
        "metric/baseline": Figure(comparison.baseline, "metric"),
        "metric/difference": Figure(comparison.difference, "difference"),
        "metric/standard_error": Figure(error, "difference"),
        "metric/noise": Figure(comparison.noise, "difference"),
        "metric/zone": Figure(zone, "difference"),
    }


def _tested(groups: Groups, variant: str, limit: float) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for name in groups.tested:
        by = groups.by(name)
        figures = _metric(by, by.of[variant], limit)
        shown = ("mean", "difference", "standard_error")
        found |= {f"test_{what}/{name}": figures[f"metric/{what}"] for what in shown if f"metric/{what}" in figures}
    return found


def _held(name: str, kinds: dict[str, float], groups: Groups) -> dict[str, Figure]:
    if not kinds:
        return {}
    total, whole = sum(kinds.values()), groups.float32.held
    found = {f"{name}/{kind}": Figure(nbytes, "bytes") for kind, nbytes in kinds.items()}
    found[f"{name}/total"] = Figure(total, "bytes")
    return found | _some(f"{name}/share", total / whole if whole else None, "share")


def _fits(groups: Groups, group: Group, kinds: dict[str, float]) -> dict[str, Figure]:
    """The largest network of this kind, and the largest batch of this very network, by memory."""
    parameters, examples = group.median(lambda run: run.parameters), group.median(lambda run: run.examples)
    total, activations = sum(kinds.values()), kinds.get("activations", 0)
    whole = groups.float32.held
    found = _some("model/ratio", whole / total if whole and total else None, "times")
    for size in CARDS:
        memory = size * 2**30
        if parameters and total:
            found[f"model/{size}"] = Figure(parameters * memory / total, "parameters")
        if activations:
            batch = math.floor((examples or 1) * (memory - (total - activations)) / activations)
            found[f"batch/{size}"] = Figure(max(0, batch), "examples" if examples else "batches")
    return found


def _cost(group: Group, study: Study) -> dict[str, Figure]:
    steps, step_ms = [run.steps for run in group.ended("finished")], group.step_ms
    if study.price is None or not steps or step_ms is None:
        return {}
    hours = step_ms / 3.6e6 * statistics.median(steps) * study.devices
    return {"cost/hours": Figure(hours, "hours"), "cost/price": Figure(hours * study.price, "price")}


def _some(name: str, value: float | None, unit: str) -> dict[str, Figure]:
    return {} if value is None else {name: Figure(value, unit)}
