"""Which optimizers have a fused update, and how their options become its hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lowprec_plugin.arithmetic.formulas import ALGORITHMS, Algorithm

Group = dict[str, Any]


@dataclass(frozen=True)
class FusedUpdate:
    """One optimizer's fused update.

    Attributes:
        algorithms: the formulas that it may need, by the names that the plan and the command line have for each.
        hypers: the hyperparameters by name, given a parameter group, the step (from 1) of a parameter, and whether its
            state is new.
        unfit: why a group cannot be updated so, or ``None`` if it can.
        choose: the name of the formula that a group needs; of a single formula there is no choice.
    """

    algorithms: Mapping[str, Algorithm]
    hypers: Callable[[Group, int, bool], Mapping[str, float]]
    unfit: Callable[[Group], str | None]
    choose: Callable[[Group], str] | None = None

    def algorithm(self, group: Group) -> Algorithm:
        """The formula that ``group`` needs."""
        return self.algorithms[self.choose(group) if self.choose else next(iter(self.algorithms))]


#: State that is a sum or average of squares, by the names that torch.optim gives it. Stored as its root.
SQUARED_STATES = frozenset({"max_exp_avg_sq", "square_avg", "acc_delta", "sum", "variance"}).union(
    *(algorithm.squared for algorithm in ALGORITHMS)
)
#: The optimizers that have one, by their float classes. :mod:`.optimizers` enters its own.
FUSED: dict[type[torch.optim.Optimizer], FusedUpdate] = {}


def named_algorithms() -> dict[str, Algorithm]:
    """Every optimizer's formula, by the name that the plan and the command line have for it."""
    return {name: algorithm for update in FUSED.values() for name, algorithm in update.algorithms.items()}


def sign_of(group: Group) -> float:
    """What the gradients of ``group`` are multiplied by."""
    return -1.0 if group["maximize"] else 1.0


def unless_differentiable(group: Group) -> str | None:
    """Why ``group`` is not fit, if nothing else is against it."""
    return "differentiable=True" if group.get("differentiable") else None


def fused_update(float_class: type[torch.optim.Optimizer], group: Group) -> tuple[FusedUpdate | None, str]:
    """The fused update of an optimizer for ``group``; or ``None`` and the reason why the generic path serves."""
    update = FUSED.get(float_class)
    if update is None:
        return None, f"{float_class.__name__} has no fused update"
    reason = update.unfit(group)
    return (update, "") if reason is None else (None, f"{float_class.__name__} with {reason} has no fused update")
