"""Every quantity of the report, from the records: name, value, unit and how it was computed."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import NamedTuple

from lowprec_plugin.plan.table import SIZES
from lowprec_plugin.poc.run.study import Study
from lowprec_plugin.poc.run.variants import BF16, BF16_MIXED, FLOAT32, TWIN
from lowprec_plugin.poc.verdict.groups import Group, Groups
from lowprec_plugin.poc.verdict.noise import pace
from lowprec_plugin.quality import LIMIT

#: Cards that are known by their memory, in GiB.
CARDS = {size: cards for size, cards in SIZES.items() if cards}


class Known(NamedTuple):
    """What is known of a quantity by its name: its unit, how it comes from the runs of its variant, and its heading."""

    unit: str
    how: str
    heading: str = "{last}"


_DEVIATION = "the median deviation of its logarithm: the twins' from 0 or its own, the larger"
#: By the longest of these that a quantity's name begins with.
KNOWN = {
    "metric/mean": Known("metric", "mean over the runs that finished", "{metric}"),
    "metric/low": Known("metric", "least of the runs that finished", "lowest seed"),
    "metric/high": Known("metric", "most of the runs that finished", "highest seed"),
    "metric/baseline": Known("metric", "float32's mean over the seeds on which it, its twin and the variant finished"),
    "metric/difference": Known("difference", "mean over these seeds, variant minus float32", "difference from float32"),
    "metric/standard_error": Known("difference", "of that mean: the larger of the twins' and its own; see quality.py"),
    "metric/noise": Known("difference", "root mean square over these seeds of twin minus float32"),
    "metric/zone": Known("difference", "the lesser of two standard errors and of the limit, a share of the baseline"),
    "test_mean": Known("metric", "of a metric that the test logged: as metric/mean"),
    "test_": Known("difference", "of a metric that the test logged: as metric/difference and metric/standard_error"),
    "held/": Known("bytes", f"median over the runs of held; of {BF16_MIXED!r}, over float32's runs of bf16"),
    "held/total": Known("bytes", "sum over the kinds", "bytes held"),
    "held/share": Known("share", "of float32's held/total", "of float32's bytes"),
    "peak/": Known("bytes", "median over the runs of peak", "peak memory"),
    "wire/sent": Known("bytes", "median over the runs of sent, per step and process", "sent"),
    "wire/float32": Known("bytes", "median over the runs of float32_sent", "float32 would send"),
    "wire/share": Known("share", "wire/sent over wire/float32", "of float32's"),
    "step/median": Known("ms", "median over the runs of step_ms", "median step"),
    "step/fast": Known("ms", "the same of its first decile", "a tenth is below"),
    "step/slow": Known("ms", "the same of its last decile", "a tenth is above"),
    "step/ratio": Known("times", "median over the seeds of step_ms over float32's", "of float32's step, seed by seed"),
    "step/error": Known("times", f"step/ratio x 1.858 / sqrt(seeds) x {_DEVIATION}", "±"),
    "updates/saturated": Known("share", "mean over all layers of all runs, weighted by their elements", "out of range"),
    "updates/lost": Known("share", "as updates/saturated", "smaller than half a code"),
    "updates/unchanged": Known("share", "as updates/saturated", "left the number as it was"),
    "model/": Known("parameters", "parameters x memory / held/total: everything measured grows alike", "{last} GB"),
    "model/ratio": Known("times", "float32's held/total over the variant's", "of float32's"),
    "batch/": Known("examples", "examples x (memory - what is held beside activations) / activations", "{last} GB"),
    "cost/hours": Known("hours", "step/median x median steps of the runs that finished x devices"),
    "cost/price": Known("price", "cost/hours x the price per hour that was given"),
}


class Quantity(NamedTuple):
    """One number of the report, in ``unit``; ``batches`` are as they were run, where examples are not known."""

    value: float
    unit: str


_Values = dict[str, float | None]


def known_of(name: str) -> Known:
    """What is known of a quantity of this name."""
    return KNOWN[max((begin for begin in KNOWN if name.startswith(begin)), key=len)]


def quantities(groups: Groups, study: Study) -> dict[str, dict[str, Quantity]]:
    """By variant and name; a variant lacks what its runs do not give."""
    found = {name: _bytes(group, groups) | _of_runs(group, groups, study) for name, group in groups.of.items()}
    every = dict(groups.of)
    mixed = Group(BF16_MIXED, groups.metric, [replace(run, held=run.bf16) for run in groups.float32.runs])
    if mixed.held and not (BF16.name in every and every[BF16.name].held):
        found[BF16_MIXED], every[BF16_MIXED] = _bytes(mixed, groups), mixed

    def unit(variant: str, name: str) -> str:
        unknown = name.startswith("batch/") and not every[variant].median(lambda run: run.examples)
        return "batches" if unknown else known_of(name).unit

    return {
        variant: {name: Quantity(value, unit(variant, name)) for name, value in values.items() if value is not None}
        for variant, values in found.items()
    }


def _bytes(group: Group, groups: Groups) -> _Values:
    """What is held, the largest network of this kind, and the largest batch of this very network, by memory."""
    kinds, total, whole = group.kinds, group.held, groups.float32.held
    parameters, examples = group.median(lambda run: run.parameters), group.median(lambda run: run.examples)
    if not total:
        return {}
    activations = kinds["activations"]
    found: _Values = {"held/total": total, **{f"held/{kind}": nbytes for kind, nbytes in kinds.items()}}
    if whole:
        found |= {"held/share": total / whole, "model/ratio": whole / total}
    for size in CARDS:
        memory = size * 2**30
        if parameters:
            found[f"model/{size}"] = parameters * memory / total
        if activations:
            batch = math.floor((examples or 1) * (memory - (total - activations)) / activations)
            found[f"batch/{size}"] = max(0, batch)
    return found


def _of_runs(group: Group, groups: Groups, study: Study) -> _Values:
    sent, whole = group.median(lambda run: run.sent), group.median(lambda run: run.float32_sent)
    steps, step_ms = [run.steps for run in group.ended("finished")], group.step_ms()
    found = {f"metric/{what}": value for what, value in _metric(groups, group).items()}
    for name in groups.tested:
        by = groups.by(name)
        tested = _metric(by, by.of[group.variant])
        found |= {f"test_{what}/{name}": tested.get(what) for what in ("mean", "difference", "standard_error")}
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
    found: _Values = {"mean": statistics.fmean(values), "low": min(values), "high": max(values)}
    comparison = groups.compare(group.variant)
    if comparison is None or group.variant == FLOAT32.name:
        return found
    # The twin is the yardstick: beside it stands what the others are held against.
    error = comparison.twins_error if group.variant == TWIN.name else comparison.standard_error
    return found | {
        "baseline": comparison.baseline,
        "difference": comparison.difference,
        "standard_error": error,
        "noise": comparison.noise,
        "zone": min(2 * error, LIMIT * abs(comparison.baseline)),
    }
