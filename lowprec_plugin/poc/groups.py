"""The runs of one comparison, variant by variant: what the verdict and the report read them through."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from lowprec_plugin.poc.records import RunRecord
from lowprec_plugin.poc.variants import FLOAT32, TWIN
from lowprec_plugin.quality import (
    Comparison,
    allowance,
    compare,
)

#: bfloat16 autocast, by the name that the command line has for it.
BF16 = "bf16"
#: Of ``held``, in the order of the report.
KINDS = ("weights", "state", "gradients", "activations", "buffers")


@dataclass(frozen=True)
class Group:
    """The runs of one variant, in the order of their seeds."""

    variant: str
    metric: str
    runs: list[RunRecord] = field(default_factory=list)

    @property
    def values(self) -> dict[int, float]:
        """The metric by seed, of the runs that finished with one."""
        return {
            run.seed: run.metrics[self.metric]
            for run in self.runs
            if run.status == "finished" and math.isfinite(run.metrics.get(self.metric, math.nan))
        }

    def ended(self, status: str) -> list[RunRecord]:
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
        """The mean of a share over all layers of all runs, by their elements; ``None``: it was not counted."""
        found = [
            (layer.elements, value)
            for run in self.runs
            for layer in run.layers
            if (value := getattr(layer, what)) is not None
        ]
        elements = sum(count for count, _ in found)
        return math.fsum(count * value for count, value in found) / elements if elements else None

    @property
    def kinds(self) -> dict[str, float]:
        """Bytes held by one process, by kind: medians over the runs that measured them; empty if none did."""
        found = [run.held for run in self.runs if run.held]
        return {kind: statistics.median(held.get(kind, 0) for held in found) for kind in KINDS} if found else {}

    @property
    def held(self) -> float | None:
        """Bytes held by one process, in all."""
        return sum(self.kinds.values()) or None

    @property
    def step_ms(self) -> float | None:
        """Milliseconds of a training step."""
        return self.median(lambda run: run.step_ms.get("median", 0.0))


@dataclass(frozen=True)
class Groups:
    """Every variant's runs.

    Attributes:
        metric, higher_is_better: what is compared.
        tolerance: by how much a variant may be worse, as :func:`lowprec_plugin.quality.allowance` has it; ``None``: by
            no difference that can be seen.
        of: by variant, in the order of the study; a variant may have no run yet.
    """

    metric: str
    higher_is_better: bool
    tolerance: float | str | None
    of: dict[str, Group]

    @classmethod
    def make(
        cls,
        runs: Sequence[RunRecord],
        metric: str,
        mode: str,
        variants: Sequence[str] = (),
        tolerance: float | str | None = None,
    ) -> Groups:
        """Group ``runs``, in any order, by ``metric``, of which more is better if ``mode`` is ``"max"``.

        Args:
            variants: their order, and those that have no run yet.
            tolerance: a number in the metric's units, or text such as ``"2%"`` of float32's.
        """
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
    def steps(self) -> int:
        """The most that a run of float32 made."""
        return max((run.steps for run in self.float32.runs), default=0)

    @property
    def settings(self) -> list[Group]:
        """All the others."""
        return [group for name, group in self.of.items() if name not in (FLOAT32.name, TWIN.name)]

    @property
    def tested(self) -> list[str]:
        """Metrics that a test logged, but for the one that is compared."""
        names = dict.fromkeys(name for group in self.of.values() for run in group.runs for name in run.tested)
        return [name for name in names if name != self.metric]

    def by(self, metric: str) -> Groups:
        """The same runs by another metric."""
        return replace(self, metric=metric, of={name: replace(group, metric=metric) for name, group in self.of.items()})

    def paired(self, variant: str) -> list[int]:
        """The seeds on which float32, its twin and the variant all finished."""
        return [seed for seed in self.of[variant].values if seed in self.float32.values and seed in self.twin.values]

    def compare(self, variant: str) -> Comparison | None:
        """The project's rule on those seeds; ``None`` if there is no such seed."""
        seeds = self.paired(variant)
        if not seeds:
            return None
        sides = (self.float32.values, self.twin.values, self.of[variant].values)
        return compare(*([values[seed] for seed in seeds] for values in sides))

    def tolerated(self, found: Comparison) -> bool:
        """Whether a variant is within the tolerance even if two standard errors are added to what it is worse by."""
        if self.tolerance is None:
            return False
        allowed = allowance(self.tolerance, found.baseline)
        return bool(found.within(allowed, higher_is_better=self.higher_is_better))

    def stuck(self, variant: str) -> float | None:
        """Where every run on those seeds ended, float32's, the twin's and the variant's; ``None``: not at one value.

        At the end of its range, as an accuracy of 100 %, or where it stands still, a metric tells nothing apart.
        """
        sides = (self.float32.values, self.twin.values, self.of[variant].values)
        ends = {values[seed] for values in sides for seed in self.paired(variant)}
        return ends.pop() if len(ends) == 1 else None

    def share_held(self, variant: str) -> float | None:
        """Bytes that the variant holds over float32's; ``None`` if either is not known."""
        part, whole = self.of[variant].held, self.float32.held
        return part / whole if part and whole else None
