"""Everything that the report says, before it is put into HTML, Markdown or JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowprec_plugin.poc.report.quantities import Figure, figures
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
#: How figures are written, by unit; those of the metric have a scale of their own.
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
    figures: dict[str, dict[str, Figure]]  # by variant and name
    curves: dict[str, dict[str, list[Point]]]  # by name of the curve and variant
    layers: dict[str, list[LayerReport]]  # by variant, of those that count; the shares are means over the runs
    files: dict[str, dict[int, str]]  # the run files of a variant by seed, relative to the report's folder

    def figure(self, variant: str, name: str) -> Figure | None:
        """A figure, if the runs gave it."""
        return self.figures.get(variant, {}).get(name)

    def text(self, variant: str, name: str) -> str:
        """A figure with its unit, rounded; ``–`` if the runs did not give it."""
        figure, scale = self.figure(variant, name), self.verdict.scale
        if figure is None:
            return "–"
        return (WRITTEN | {"metric": scale.value, "difference": scale.distance})[figure.unit](figure.value)

    def kept_in_float(self, variant: str) -> dict[str, str]:
        """Parameters that any run of a variant left in float, and why."""
        return {name: why for run in self.groups.of[variant].runs for name, why in run.kept_in_float.items()}

    @property
    def kept(self) -> list[tuple[list[str], dict[str, str]]]:
        """The variants that leave the same parameters in float, and these."""
        found: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for variant in self.groups.of:
            if reasons := self.kept_in_float(variant):
                found.setdefault(tuple(sorted(reasons.items())), []).append(variant)
        return [(variants, self.kept_in_float(variants[0])) for variants in found.values()]


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
    layers = {group.variant: layers for group in groups.settings if (layers := _layers(group))}
    return Contents(study, groups, judge(groups), figures(groups, study), curves, layers, files)


def _layers(group: Group) -> list[LayerReport]:
    """Every layer with its shares averaged over the runs; empty if nothing was counted."""
    found: dict[str, list[LayerReport]] = {}
    for run in group.runs:
        for layer in run.layers:
            found.setdefault(layer.name, []).append(layer)
    made = []
    for layers in found.values():
        values = {what: [value for each in layers if (value := getattr(each, what)) is not None] for what in COUNTED}
        means: dict[str, Any] = {what: math.fsum(each) / len(each) if each else None for what, each in values.items()}
        made.append(replace(layers[-1], **means))
    return made if any(getattr(layer, what) is not None for layer in made for what in COUNTED) else []
