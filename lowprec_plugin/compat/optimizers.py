"""The wrapper in which torch runs a step, with hooks and profiling, and what gradient scalers ask of an optimizer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from lowprec_plugin.compat.lookup import TORCH, look_up

_SCALES = "_step_supports_amp_scaling"
_FEATURE = "to run the hooks of a step once"


def unhooked_step(optimizer: torch.optim.Optimizer, float_class: type[torch.optim.Optimizer]) -> Callable[..., Any]:
    """The step of ``float_class``, a base of ``optimizer``'s class, without the hooks of every optimizer.

    Raises:
        ValueError: if this torch marks a wrapped step in another way.
    """
    look_up(type(optimizer).step, "hooked", host=TORCH, feature=_FEATURE)  # torch has wrapped this one for certain
    step: Any = float_class.step
    return step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[no-any-return]


def without_hooks(twin: torch.optim.Optimizer) -> None:
    """Take its own hooks from ``twin``, a copy of an optimizer.

    Raises:
        ValueError: if this torch keeps them elsewhere.
    """
    for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        look_up(twin, name, host=TORCH, feature=_FEATURE)
        setattr(twin, name, OrderedDict())


def scale_before_the_step(optimizer: torch.optim.Optimizer) -> None:
    """Have a ``GradScaler`` divide the gradients by its scale, and look for infinities, before the step.

    torch's own steps do both themselves with ``fused=True``, and say so by an attribute that only these have.
    """
    if hasattr(optimizer, _SCALES):
        setattr(optimizer, _SCALES, False)


def takes_addresses_for_names(optimizer_class: type[torch.optim.Optimizer]) -> bool:
    """Whether a step of ``optimizer_class`` asks for the address of a tensor to tell it from others, never to go there.

    HeavyBall keys its state so; its kernels are compiled by torch alone.
    """
    return any(kind.__module__.partition(".")[0] == "heavyball" for kind in optimizer_class.__mro__)
