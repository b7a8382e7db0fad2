"""Everything that the report says, before it is put into HTML, Markdown or JSON."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowprec_plugin.poc.report.quantities import Quantity, quantities
from lowprec_plugin.poc.run.metrics import Scale
from lowprec_plugin.poc.run.study import FILE, Study, load_runs, load_study, run_file
from lowprec_plugin.poc.verdict.curves import curve, training_loss
from lowprec_plugin.poc.verdict.groups import Group, Groups
from lowprec_plugin.poc.verdict.judge import Verdict, judge
from lowprec_plugin.telemetry import LayerReport
from lowprec_plugin.text.charts import Point
from lowprec_plugin.text.numbers import bytes_text, large, share, significant, times

#: What the report is written to.
FILES = ("report.html", "report.md", "report.json")
#: What is counted of a layer.
COUNTED = ("saturated", "lost", "unchanged", "noise_to_update")
#: How quantities are written, by unit; those of the metric have a scale of their own.
WRITTEN: dict[str, Callable[[float], str]] = {
    "bytes": bytes_text,
    "share": share,
    "times": times,
    "ms": lambda ms: f"{significant(ms)} ms",
    "hours": lambda hours: f"{significant(hours)} h",
    "price": significant,
    "parameters": large,
    "examples": large,
    "batches": lambda count: f"{large(count)} × your batch",
}


@dataclass(frozen=True)
class Contents:
    """The report."""

    study: Study
    groups: Groups
    verdict: Verdict
    quantities: dict[str, dict[str, Quantity]]  # by variant and name
    curves: dict[str, dict[str, list[Point]]]  # by name of the curve and variant
    layers: dict[str, list[LayerReport]]  # by variant, of those that count; the shares are means over the runs
    files: dict[str, dict[int, str]]  # the run files of a variant by seed, relative to the report's folder

    def quantity(self, variant: str, name: str) -> Quantity | None:
        """A quantity, if the runs gave it."""
        return self.quantities.get(variant, {}).get(name)

    def text(self, quantity: Quantity, scale: Scale | None = None) -> str:
        """With its unit, rounded; ``scale``: of another metric than the one that is compared."""
        value, unit = quantity
        return (scale or self.verdict.scale).value(value) if unit == "metric" else WRITTEN[unit](value)

    def kept_in_float(self, variant: str) -> dict[str, str]:
        """Parameters that any run of a variant left in float, and why."""
        return {name: why for run in self.groups.of[variant].runs for name, why in run.kept_in_float.items()}

    @property
    def kept(self) -> list[tuple[list[str], dict[str, str]]]:
        """The variants that leave the same parameters in float, and these."""
        found: list[tuple[list[str], dict[str, str]]] = []
        for variant in self.groups.of:
            if reasons := self.kept_in_float(variant):
                alike = next((variants for variants, theirs in found if theirs == reasons), None)
                found.append(([variant], reasons)) if alike is None else alike.append(variant)
        return found


def read(folder: Path) -> Contents:
    """The contents of a report on what ``folder`` holds.

    Raises:
        ValueError: if it holds no proof of concept, or no run of it has ended.
    """
    study = load_study(folder)
    runs = load_runs(folder, study)
    if not runs:
        raise ValueError(f"no run in {folder} has ended yet: there is nothing to report but {FILE}")
    groups = Groups.make(runs, study.metric, study.mode, list(study.variants), study.tolerance)
    curves = {
        name: {variant: points for variant, group in groups.of.items() if (points := curve(group, name))}
        for name in dict.fromkeys((study.metric, training_loss(runs)))
        if name
    }
    files = {
        name: {run.seed: str(run_file(folder, name, run.seed).relative_to(folder)) for run in groups.of[name].runs}
        for name in study.variants
    }
    layers = {name: layers for name, group in groups.of.items() if (layers := _layers(group))}
    return Contents(study, groups, judge(groups), quantities(groups, study), curves, layers, files)


def _layers(group: Group) -> list[LayerReport]:
    """Every layer with its shares averaged over the runs; empty if nothing was counted."""
    found: dict[str, list[LayerReport]] = defaultdict(list)
    for run in group.runs:
        for layer in run.layers:
            found[layer.name].append(layer)
    if all(getattr(layer, what) is None for layers in found.values() for layer in layers for what in COUNTED):
        return []
    means = {name: {what: _mean(layers, what) for what in COUNTED} for name, layers in found.items()}
    return [replace(layers[-1], **means[name]) for name, layers in found.items()]


def _mean(layers: list[LayerReport], what: str) -> Any:
    values = [value for layer in layers if (value := getattr(layer, what)) is not None]
    return statistics.fmean(values) if values else None
