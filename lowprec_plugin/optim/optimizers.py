"""Optimizers for fixed-point parameters, with torch.optim's own arguments: each class with what its options become.

What is in ``__all__`` is exported by :mod:`lowprec_plugin.optim`; what is in :data:`.fused.FUSED` is fused wherever it
comes from, adopted ones too. docs/extending.md says what a new one takes.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch

from lowprec_plugin.arithmetic import formulas
from lowprec_plugin.compat.optimizers import check_scaling, scale_before_the_step
from lowprec_plugin.optim.fused import FUSED, FusedUpdate, Group, sign_of, unless_differentiable
from lowprec_plugin.optim.lion import FloatLion
from lowprec_plugin.optim.options import StepOptions, names
from lowprec_plugin.optim.settings import StepSettings
from lowprec_plugin.optim.step import FixedPointStep, update_in_backward

__all__ = ["SGD", "Adam", "AdamW", "Lion", "RMSprop"]


class _Ours(FixedPointStep):
    """Takes the settings of the fixed-point step beside the arguments of the float class."""

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        settings = StepSettings(**{name: kwargs.pop(name) for name in names(StepOptions) if name in kwargs})
        self.float_class.__init__(self, params, *args, **kwargs)
        self.fixed_point = settings
        check_scaling(self)
        scale_before_the_step(self)
        update_in_backward(self)


def _with_settings(function: Any) -> inspect.Signature:
    """The signature of ``function`` with the arguments of :class:`StepSettings` by name, which its ``kwargs`` take."""
    own = inspect.signature(function)
    *first, others = own.parameters.values()
    by_name = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for each in inspect.signature(StepSettings).parameters.values()
    ]
    return own.replace(parameters=[*first, *by_name, others])


vars(_Ours)["__init__"].__signature__ = _with_settings(_Ours.__init__)


class SGD(_Ours, torch.optim.SGD):
    """``torch.optim.SGD``; also ``state_word_length``, ``rounding``, ``nonfinite``: see :class:`StepSettings`.

    With momentum also ``state_fraction_length``; note that the buffer is a sum of gradients, not of updates.
    """

    float_class = torch.optim.SGD


def _sgd_hypers(group: Group, step: int, new: bool) -> dict[str, float]:
    mu = group["momentum"]
    hypers = {"sign": sign_of(group), "l2": group["weight_decay"], "lr": float(group["lr"])}
    if mu == 0:
        return hypers
    # Not step == 1: torch's own SGD, whose state may have been taken up, counts no steps.
    fresh = 1.0 if new else 1.0 - group["dampening"]
    direct, through = (1.0, mu) if group["nesterov"] else (0.0, 1.0)
    return hypers | {"mu": mu, "fresh": fresh, "direct": direct, "through": through}


FUSED[torch.optim.SGD] = FusedUpdate(
    {"sgd": formulas.SGD, "sgd-momentum": formulas.MOMENTUM}, _sgd_hypers, unless_differentiable,
    choose=lambda group: "sgd-momentum" if group["momentum"] != 0 else "sgd",
)  # fmt: skip


class Adam(_Ours, torch.optim.Adam):
    """``torch.optim.Adam``; also ``state_word_length``, ``rounding``, ``nonfinite``: see :class:`StepSettings`.

    The second moment is stored as its square root, the quantity that Adam divides by.
    """

    float_class = torch.optim.Adam


class AdamW(_Ours, torch.optim.AdamW):
    """``torch.optim.AdamW``; also ``state_word_length``, ``rounding``, ``nonfinite``: see :class:`StepSettings`.

    The second moment is stored as its square root, the quantity that Adam divides by.
    """

    float_class = torch.optim.AdamW


def _adam_hypers(group: Group, step: int, new: bool) -> dict[str, float]:
    lr, decay = float(group["lr"]), group["weight_decay"]
    beta1, beta2 = (float(beta) for beta in group["betas"])
    decoupled, coupled = (lr * decay, 0.0) if group["decoupled_weight_decay"] else (0.0, decay)
    return {
        "sign": sign_of(group), "l2": coupled, "step_size": lr / (1 - beta1**step), "decay": decoupled,
        "one_minus_beta1": 1 - beta1, "beta2": beta2, "one_minus_beta2": 1 - beta2,
        "correction": 1 / math.sqrt(1 - beta2**step), "eps": group["eps"],
    }  # fmt: skip


def _adam_unfit(group: Group) -> str | None:
    return "amsgrad=True" if group["amsgrad"] else unless_differentiable(group)


FUSED[torch.optim.Adam] = FusedUpdate({"adam": formulas.ADAM}, _adam_hypers, _adam_unfit)
FUSED[torch.optim.AdamW] = FusedUpdate({"adamw": formulas.ADAM}, _adam_hypers, _adam_unfit)


class Lion(_Ours, FloatLion):
    """Lion (Chen et al. 2023): the sign of an interpolated momentum, and decoupled weight decay.

    ``Lion(params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, *, maximize=False)``; also ``state_word_length``,
    ``rounding``, ``nonfinite``: see :class:`StepSettings`.
    """

    float_class = FloatLion


def _lion_hypers(group: Group, step: int, new: bool) -> dict[str, float]:
    lr, (beta1, beta2) = float(group["lr"]), group["betas"]
    return {
        "sign": sign_of(group), "lr": lr, "decay": lr * group["weight_decay"], "one_minus_beta1": 1 - beta1,
        "one_minus_beta2": 1 - beta2,
    }  # fmt: skip


FUSED[FloatLion] = FusedUpdate({"lion": formulas.LION}, _lion_hypers, lambda group: None)


class RMSprop(_Ours, torch.optim.RMSprop):
    """``torch.optim.RMSprop``; also ``state_word_length``, ``rounding``, ``nonfinite``: see :class:`StepSettings`.

    The mean of squares is stored as its square root. With momentum, or centered, it takes the slower path.
    """

    float_class = torch.optim.RMSprop


def _rmsprop_hypers(group: Group, step: int, new: bool) -> dict[str, float]:
    alpha = group["alpha"]
    return {
        "sign": sign_of(group), "l2": group["weight_decay"], "lr": float(group["lr"]), "alpha": alpha,
        "one_minus_alpha": 1 - alpha, "eps": group["eps"],
    }  # fmt: skip


def _rmsprop_unfit(group: Group) -> str | None:
    if group["momentum"] != 0:
        return f"momentum={group['momentum']}"
    return "centered=True" if group["centered"] else unless_differentiable(group)


FUSED[torch.optim.RMSprop] = FusedUpdate({"rmsprop": formulas.RMSPROP}, _rmsprop_hypers, _rmsprop_unfit)
