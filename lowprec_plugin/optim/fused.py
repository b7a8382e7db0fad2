"""Which optimizers have a fused update, and how their options become its hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lowprec_plugin.arithmetic.formulas import Algorithm, Hyper
from lowprec_plugin.optim.lion import FloatLion

Group = dict[str, Any]

#: State that is a sum or average of squares, by the names that torch.optim gives it. Stored as its root.
SQUARED_STATES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "variance"})


@dataclass(frozen=True)
class FusedUpdate:
    """One optimizer's fused update.

    Attributes:
        algorithm: the formula, given a parameter group.
        hypers: its hyperparameters, given the group, the step (from 1) of a parameter, and whether its state is new.
        unfit: why a group cannot be updated so, or ``None`` if it can.
    """

    algorithm: Callable[[Group], Algorithm]
    hypers: Callable[[Group, int, bool], Hyper]
    unfit: Callable[[Group], str | None]


#: The state's names, in the order of the formula's arguments.
STATES: dict[Algorithm, tuple[str, ...]] = {
    Algorithm.SGD: (),
    Algorithm.MOMENTUM: ("momentum_buffer",),
    Algorithm.ADAM: ("exp_avg", "exp_avg_sq"),
    Algorithm.LION: ("exp_avg",),
}


def _sign(group: Group) -> float:
    return -1.0 if group["maximize"] else 1.0


def _differentiable(group: Group) -> str | None:
    return "differentiable=True" if group.get("differentiable") else None


def _sgd_algorithm(group: Group) -> Algorithm:
    return Algorithm.MOMENTUM if group["momentum"] != 0 else Algorithm.SGD


def _sgd_hypers(group: Group, step: int, new: bool) -> Hyper:
    lr, decay, momentum = float(group["lr"]), group["weight_decay"], group["momentum"]
    if momentum == 0:
        return _sign(group), decay, lr
    # Not step == 1: torch's own SGD, whose state may have been taken up, counts no steps.
    fresh = 1.0 if new else 1.0 - group["dampening"]
    direct, through = (1.0, momentum) if group["nesterov"] else (0.0, 1.0)
    return _sign(group), decay, lr, momentum, fresh, direct, through


def _adam_hypers(group: Group, step: int, new: bool) -> Hyper:
    lr, decay = float(group["lr"]), group["weight_decay"]
    beta1, beta2 = (float(beta) for beta in group["betas"])
    step_size = lr / (1 - beta1**step)
    correction = 1 / math.sqrt(1 - beta2**step)
    decoupled, coupled = (lr * decay, 0.0) if group["decoupled_weight_decay"] else (0.0, decay)
    return _sign(group), coupled, step_size, decoupled, 1 - beta1, beta2, 1 - beta2, correction, group["eps"]


def _adam_unfit(group: Group) -> str | None:
    return "amsgrad=True" if group["amsgrad"] else _differentiable(group)


def _lion_hypers(group: Group, step: int, new: bool) -> Hyper:
    beta1, beta2 = group["betas"]
    return _sign(group), float(group["lr"]), float(group["lr"]) * group["weight_decay"], 1 - beta1, 1 - beta2


_ADAM = FusedUpdate(lambda group: Algorithm.ADAM, _adam_hypers, _adam_unfit)

FUSED: dict[type[torch.optim.Optimizer], FusedUpdate] = {
    torch.optim.SGD: FusedUpdate(_sgd_algorithm, _sgd_hypers, _differentiable),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    FloatLion: FusedUpdate(lambda group: Algorithm.LION, _lion_hypers, lambda group: None),
}


def fused_update(float_class: type[torch.optim.Optimizer], group: Group) -> tuple[FusedUpdate | None, str]:
    """The fused update of an optimizer for ``group``; or ``None`` and the reason why the generic path serves."""
    update = FUSED.get(float_class)
    if update is None:
        return None, f"{float_class.__name__} has no fused update"
    reason = update.unfit(group)
    return (update, "") if reason is None else (None, f"{float_class.__name__} with {reason} has no fused update")
