"""What runs logged step by step: curves for a picture, and whether a run learned anything."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from lowprec_plugin.poc.run.metrics import LOSS
from lowprec_plugin.poc.run.study import RunRecord
from lowprec_plugin.poc.verdict.groups import Group
from lowprec_plugin.text.charts import Point

#: Most points of a curve: a picture a few hundred pixels wide shows no more.
POINTS = 60


def training_loss(runs: Sequence[RunRecord]) -> str | None:
    """The name of the training loss: the densest curve named after a loss, validation and test aside.

    Of equally dense ones, one that is named after training, then the shortest name: not a part like ``train_kl_loss``.
    """

    def rank(name: str) -> tuple[int, bool, int]:
        return sum(len(run.curves.get(name, ())) for run in runs), "train" in name.lower(), -len(name)

    return max(_losses(runs), key=rank, default=None)


def _losses(runs: Sequence[RunRecord]) -> list[str]:
    names = {name for run in runs for name in run.curves if LOSS.search(name)}
    return sorted(name for name in names if not name.lower().startswith(("val", "test", "lowprec/")))


def curve(group: Group, name: str, points: int = POINTS) -> list[Point]:
    """A curve of all runs of a variant: steps in ``points`` equal bins, each seed's mean in a bin counting once."""
    curves = [run.curves[name] for run in group.runs if run.curves.get(name)]
    if not curves:
        return []
    steps = sorted({step for each in curves for step, _ in each})
    width = (steps[-1] - steps[0]) / points if len(steps) > points else 0.0
    bins: dict[float, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for seed, each in enumerate(curves):
        for step, value in each:
            if math.isfinite(value):
                bins[min(points - 1, (step - steps[0]) // width) if width else step][seed].append((step, value))
    return [_point(list(bins[at].values())) for at in sorted(bins)]


def _point(seeds: Sequence[Sequence[tuple[int, float]]]) -> Point:
    means = [fmean(value for _, value in seed) for seed in seeds]
    return Point(fmean(step for seed in seeds for step, _ in seed), fmean(means), min(means), max(means))


def learned(run: RunRecord, metric: str, higher_is_better: bool) -> bool | None:
    """Whether any training loss fell, or the metric got better; ``None`` if no training loss was logged.

    One sign is enough: some losses rise where all is well, such as a generator's or a penalty, and one that is logged
    late may show nothing. The mean of the last tenth is compared with the first value.
    """
    losses = [values for name in _losses([run]) if len(values := _values(run, name)) > 1]
    sign = -1 if higher_is_better else 1
    metrics = [sign * value for value in _values(run, metric)]
    falls = [fmean(each[-max(1, len(each) // 10) :]) < each[0] for each in (*losses, metrics) if each]
    return any(falls) if losses else None


def are_one(runs: Sequence[RunRecord]) -> bool:
    """Whether several runs logged the same training loss and metrics: one run, whatever their seeds."""
    name = training_loss(runs)
    if len(runs) < 2 or name is None:
        return False
    return all((run.metrics, run.curves.get(name)) == (runs[0].metrics, runs[0].curves.get(name)) for run in runs)


def _values(run: RunRecord, name: str) -> list[float]:
    return [value for _, value in run.curves.get(name, ())]
