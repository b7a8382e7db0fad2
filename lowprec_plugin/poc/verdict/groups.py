"""The runs of one comparison, variant by variant."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from lowprec_plugin.memory import Kinds
from lowprec_plugin.poc.run.study import RunRecord, Status
from lowprec_plugin.poc.run.variants import FLOAT32, TWIN
from lowprec_plugin.quality import Comparison, allowance, compare

#: Of ``held``, in the order of the report.
KINDS = Kinds._fields


@dataclass(frozen=True)
class Group:
    """The runs of one variant, in the order of their seeds."""

    variant: str
    metric: str
    runs: list[RunRecord] = field(default_factory=list)

    @property
    def values(self) -> dict[int, float]:
        """The metric by seed, of the runs that finished with one."""
        found = {run.seed: run.metrics.get(self.metric, math.nan) for run in self.ended("finished")}
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def ended(self, status: Status) -> list[RunRecord]:
        """The runs that ended so."""
        return [run for run in self.runs if run.status == status]

    @property
    def failed(self) -> list[RunRecord]:
        """The runs that neither diverged nor gave the metric."""
        return [run for run in self.runs if run.status != "diverged" and run.seed not in self.values]

    def median(self, figure: Callable[[RunRecord], float]) -> float | None:
        """The median over the runs that have the figure (it is not 0); ``None`` if none has."""
        found = [value for value in map(figure, self.runs) if value]
        return statistics.median(found) if found else None

    def average(self, what: str) -> float | None:
        """The mean of a share over all layers of all runs, weighted by elements; ``None`` if it was not counted."""
        layers = [layer for run in self.runs for layer in run.layers if getattr(layer, what) is not None]
        elements = sum(layer.elements for layer in layers)
        return math.fsum(each.elements * getattr(each, what) for each in layers) / elements if elements else None

    @property
    def kinds(self) -> dict[str, float]:
        """Bytes held by one process, by kind: medians over the runs that measured them; empty if none did."""
        found = [run.held for run in self.runs if run.held]
        return {kind: statistics.median(held.get(kind, 0) for held in found) for kind in KINDS} if found else {}

    @property
    def held(self) -> float | None:
        """Bytes held by one process, of all kinds."""
        return sum(self.kinds.values()) or None

    def step_ms(self, which: str = "median") -> float | None:
        """Milliseconds of an optimizer step."""
        return self.median(lambda run: run.step_ms.get(which, 0.0))


@dataclass(frozen=True)
class Groups:
    """Every variant's runs."""

    metric: str
    higher_is_better: bool
    tolerance: float | str | None  # how much worse a variant may be, as quality.allowance has it; None: not at all
    of: dict[str, Group]  # by variant, in the order of the study; a variant may have no run yet

    @classmethod
    def make(
        cls,
        runs: Sequence[RunRecord],
        metric: str,
        mode: str,
        variants: Sequence[str] = (),
        tolerance: float | str | None = None,
    ) -> Groups:
        """Group ``runs``, in any order; ``variants`` sets theirs, and names those that have no run yet."""
        names = dict.fromkeys([FLOAT32.name, TWIN.name, *variants, *(run.variant for run in runs)])
        ordered = sorted(runs, key=lambda run: run.seed)
        groups = {name: Group(name, metric, [run for run in ordered if run.variant == name]) for name in names}
        return cls(metric, mode == "max", tolerance, groups)

    @property
    def float32(self) -> Group:
        """The baseline."""
        return self.of[FLOAT32.name]

    @property
    def twin(self) -> Group:
        """The baseline's twin, which measures the noise."""
        return self.of[TWIN.name]

    @property
    def tested(self) -> list[str]:
        """Metrics that a test logged, other than the one that is compared."""
        names = dict.fromkeys(name for group in self.of.values() for run in group.runs for name in run.tested)
        return [name for name in names if name != self.metric]

    def by(self, metric: str) -> Groups:
        """The same runs by another metric."""
        return replace(self, metric=metric, of={name: replace(group, metric=metric) for name, group in self.of.items()})

    def _sides(self, variant: str) -> list[list[float]]:
        sides = [group.values for group in (self.float32, self.twin, self.of[variant])]
        return [[values[seed] for seed in self.paired(variant)] for values in sides]

    def paired(self, variant: str) -> list[int]:
        """The seeds on which float32, its twin and the variant all finished."""
        return [seed for seed in self.of[variant].values if seed in self.float32.values and seed in self.twin.values]

    def compare(self, variant: str) -> Comparison | None:
        """The project's rule on those seeds; ``None`` if there is no such seed."""
        return compare(*self._sides(variant)) if self.paired(variant) else None

    def tolerated(self, found: Comparison) -> bool:
        """Whether a variant is within the tolerance, two standard errors included."""
        if self.tolerance is None:
            return False
        allowed = allowance(self.tolerance, found.baseline)
        return bool(found.within(allowed, higher_is_better=self.higher_is_better))

    def stuck(self, variant: str) -> bool:
        """Whether all runs on those seeds ended at one value, such as an accuracy of 100 %, which shows nothing."""
        return len({value for side in self._sides(variant) for value in side}) == 1
