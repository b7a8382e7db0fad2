"""What a run logged step by step, thinned for a picture: mean and range over the seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from lowprec_plugin.poc.groups import Group
from lowprec_plugin.poc.records import RunRecord
from lowprec_plugin.poc.words import LOSS

#: Most points of a curve: a picture a few hundred pixels wide shows no more.
POINTS = 60


class Point(NamedTuple):
    """Of a curve: the mean over the seeds that got so far, and the lowest and highest of them."""

    step: float
    mean: float
    low: float
    high: float


def training_loss(runs: Sequence[RunRecord]) -> str | None:
    """The name of the training loss: of all curves named after a loss, validation and test aside, the densest.

    Of those that are as dense, one that is named after training, and of these the shortest name: the whole of it,
    and not a part such as ``train_kl_loss``.
    """

    def rank(name: str) -> tuple[int, bool, int]:
        return sum(len(run.curves.get(name, ())) for run in runs), "train" in name.lower(), -len(name)

    return max(_losses(runs), key=rank, default=None)


def _losses(runs: Sequence[RunRecord]) -> list[str]:
    return sorted({name for run in runs for name in run.curves if LOSS.search(name) and not _elsewhere(name)})


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


def learned(run: RunRecord, metric: str, higher_is_better: bool) -> bool | None:
    """Whether a run got anywhere: any of its training losses fell, or the metric got better; ``None``: not known.

    A loss may rise where all is well, as a generator's or a penalty, and one that is looked at late or fell at once may
    show nothing. So one sign is enough. The last tenth, on average, is held against the first value.
    """
    losses = [values for name in _losses([run]) if len(values := _values(run, name)) > 1]
    if not losses:
        return None
    sign = -1 if higher_is_better else 1
    return any(map(_fell, [*losses, [sign * value for value in _values(run, metric)]]))


def are_one(runs: Sequence[RunRecord]) -> bool:
    """Whether several runs have logged the very same training loss and metrics: one run, whatever their seeds."""
    name = training_loss(runs)
    if len(runs) < 2 or name is None:
        return False
    logged = [(run.metrics, run.curves.get(name)) for run in runs]
    return all(each == logged[0] for each in logged)


def _values(run: RunRecord, name: str) -> list[float]:
    return [value for _, value in run.curves.get(name, ())]


def _fell(values: Sequence[float]) -> bool:
    last = values[-max(1, len(values) // 10) :]
    return bool(values) and math.fsum(last) / len(last) < values[0]
