"""Everything that the report says, before it is put into HTML, Markdown or JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowprec_plugin.poc.curves import Point, curve, training_loss
from lowprec_plugin.poc.figures import Figure, Figures, figures
from lowprec_plugin.poc.groups import Group, Groups
from lowprec_plugin.poc.records import RunRecord
from lowprec_plugin.poc.study import FILE, RUN, Study, load_runs, load_study, run_folder
from lowprec_plugin.poc.verdict import Verdict, judge
from lowprec_plugin.poc.words import batches, bytes_text, large, share, significant, times
from lowprec_plugin.quality import LIMIT
from lowprec_plugin.telemetry import Layer

#: What is counted of a layer.
COUNTED = ("saturated", "lost", "unchanged", "noise_to_update")


@dataclass(frozen=True)
class Contents:
    """The report.

    Attributes:
        study, groups, verdict, figures: what was asked, run, found and computed.
        curves: by name of the curve and variant.
        layers: by variant, of those that count; the shares are means over the runs.
        files: the run files of a variant by seed, relative to the report's folder.
    """

    study: Study
    groups: Groups
    verdict: Verdict
    figures: Figures
    curves: dict[str, dict[str, list[Point]]]
    layers: dict[str, list[Layer]]
    files: dict[str, dict[int, str]]

    def figure(self, variant: str, name: str) -> Figure | None:
        """A figure, if the runs gave it."""
        return self.figures.get(variant, {}).get(name)

    def text(self, variant: str, name: str) -> str:
        """A figure as it is written; ``–`` if the runs did not give it."""
        figure = self.figure(variant, name)
        return "–" if figure is None else self.written(figure)

    def written(self, figure: Figure) -> str:
        """With its unit, rounded."""
        scale, value = self.verdict.scale, figure.value
        return {
            "metric": scale.value,
            "difference": scale.distance,
            "bytes": bytes_text,
            "share": share,
            "times": times,
            "ms": lambda ms: f"{significant(ms)} ms",
            "hours": lambda hours: f"{significant(hours)} h",
            "price": significant,
            "parameters": large,
            "examples": large,
            "batches": batches,
        }[figure.unit](value)

    def kept_in_float(self, variant: str) -> dict[str, str]:
        """Parameters that any run of a variant left in float, and why."""
        return {name: why for run in self.groups.of[variant].runs for name, why in run.kept_in_float.items()}

    @property
    def kept(self) -> list[tuple[list[str], dict[str, str]]]:
        """What is left in float, and the variants that leave just this; of those that leave any."""
        found: list[tuple[list[str], dict[str, str]]] = []
        for variant in self.groups.of:
            reasons = self.kept_in_float(variant)
            alike = next((variants for variants, other in found if other == reasons), None)
            if alike is not None:
                alike.append(variant)
            elif reasons:
                found.append(([variant], reasons))
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
    files = {
        variant: {
            run.seed: str((run_folder(folder, variant, run.seed) / RUN).relative_to(folder))
            for run in runs
            if run.variant == variant
        }
        for variant in study.variants
    }
    return make(study, runs, files)


def make(study: Study, runs: Sequence[RunRecord], files: dict[str, dict[int, str]]) -> Contents:
    """The contents of a report on these runs."""
    groups = Groups.make(runs, study.metric, study.mode, list(study.variants), study.tolerance)
    loss = training_loss(runs)
    names = dict.fromkeys(name for name in (study.metric, loss) if name)
    curves = {name: {variant: curve(group, name) for variant, group in groups.of.items()} for name in names}
    return Contents(
        study,
        groups,
        judge(groups),
        figures(groups, study, LIMIT),
        {name: {variant: points for variant, points in each.items() if points} for name, each in curves.items()},
        {group.variant: layers for group in groups.settings if (layers := _layers(group))},
        files,
    )


def _layers(group: Group) -> list[Layer]:
    """Every layer with its shares averaged over the runs; empty if nothing was counted."""
    found: dict[str, list[Layer]] = {}
    for run in group.runs:
        for layer in run.layers:
            found.setdefault(layer.name, []).append(layer)
    if not any(getattr(layer, what) is not None for layers in found.values() for layer in layers for what in COUNTED):
        return []
    return [_averaged(layers) for layers in found.values()]


def _averaged(layers: Sequence[Layer]) -> Layer:
    means: dict[str, float | None] = {}
    for what in COUNTED:
        values = [value for layer in layers if (value := getattr(layer, what)) is not None]
        means[what] = math.fsum(values) / len(values) if values else None
    last = layers[-1]
    return Layer(last.name, last.elements, last.weights, last.state, last.nbytes, **means)
