"""Optimizers that nobody adopted: what they would silently do to fixed-point parameters is said."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakSet

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lowprec_plugin.optim.step import FixedPointStep
from lowprec_plugin.sharding import fixed_part

_known: WeakSet[torch.optim.Optimizer] = WeakSet()
_watching: list[Any] = []


def watch_optimizers() -> None:
    """From now on warn at the first step of an optimizer that updates fixed-point parameters and is not adopted.

    Such a step works, in several operations that each round, and keeps its state in float.
    """
    if not _watching:
        _watching.append(register_optimizer_step_pre_hook(_look))


def _look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if optimizer in _known:
        return
    _known.add(optimizer)
    if isinstance(optimizer, FixedPointStep):
        return
    if any(fixed_part(param) is not None for group in optimizer.param_groups for param in group["params"]):
        warnings.warn(
            f"this {type(optimizer).__name__} updates fixed-point parameters by operations that round one by one, and "
            f"holds its state in float: use lowprec_plugin.optim.adopt(optimizer), or an optimizer of "
            "lowprec_plugin.optim",
            stacklevel=3,
        )
