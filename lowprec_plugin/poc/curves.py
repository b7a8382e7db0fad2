"""What a run logged step by step, thinned for a picture: mean and range over the seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from lowprec_plugin.poc.groups import Group
from lowprec_plugin.poc.records import RunRecord

#: Most points of a curve: a picture a few hundred pixels wide shows no more.
POINTS = 60


class Point(NamedTuple):
    """Of a curve: the mean over the seeds that got so far, and the lowest and highest of them."""

    step: float
    mean: float
    low: float
    high: float


def training_loss(runs: Sequence[RunRecord]) -> str | None:
    """The name of the training loss: of all curves named after a loss, validation and test aside, the densest."""
    names = {name for run in runs for name in run.curves if "loss" in name.lower() and not _elsewhere(name)}
    return max(sorted(names), key=lambda name: sum(len(run.curves.get(name, ())) for run in runs), default=None)


def _elsewhere(name: str) -> bool:
    return name.lower().startswith(("val", "test", "lowprec/"))


def curve(group: Group, name: str, points: int = POINTS) -> list[Point]:
    """A curve of all runs of a variant: steps in ``points`` equal bins, each seed's mean in a bin counting once."""
    curves = [run.curves[name] for run in group.runs if run.curves.get(name)]
    if not curves:
        return []
    steps = sorted({step for each in curves for step, _ in each})
    width = (steps[-1] - steps[0]) / points if len(steps) > points else 0.0
    bins: dict[float, list[list[tuple[int, float]]]] = defaultdict(list)
    for each in curves:
        mine: dict[float, list[tuple[int, float]]] = defaultdict(list)
        for step, value in each:
            if math.isfinite(value):
                mine[min(points - 1, (step - steps[0]) // width) if width else step].append((step, value))
        for at, found in mine.items():
            bins[at].append(found)
    return [_point(bins[at]) for at in sorted(bins)]


def _point(seeds: Sequence[Sequence[tuple[int, float]]]) -> Point:
    means = [math.fsum(value for _, value in seed) / len(seed) for seed in seeds]
    steps = [step for seed in seeds for step, _ in seed]
    return Point(math.fsum(steps) / len(steps), math.fsum(means) / len(means), min(means), max(means))


def learned(run: RunRecord, loss: str | None) -> bool | None:
    """Whether the last tenth of a run's training loss is, on average, below its first value; ``None``: not known."""
    values = [value for _, value in run.curves.get(loss, ())] if loss else []
    if len(values) < 2:
        return None
    last = values[-max(1, len(values) // 10) :]
    return math.fsum(last) / len(last) < values[0]
