"""The wrappers in which torch and its schedulers run a step, and what gradient scalers ask of an optimizer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cache, wraps
from typing import Any
from weakref import ref

import torch

from lowprec_plugin.compat.lookup import TORCH, look_up

_SCALES = "_step_supports_amp_scaling"
#: How a scheduler marks the step that it has wrapped, and the optimizer whose step was called.
_WRAPPED, _CALLED = "_wrapped_by_lr_sched", "_opt_called"
_FEATURE = "to run the hooks of a step once"


def unhooked_step(optimizer: torch.optim.Optimizer, float_class: type[torch.optim.Optimizer]) -> Callable[..., Any]:
    """The step of ``float_class``, a base of ``optimizer``'s class, without the hooks of every optimizer.

    Raises:
        ValueError: if this torch marks a wrapped step in another way.
    """
    look_up(type(optimizer).step, "hooked", host=TORCH, feature=_FEATURE)  # this one torch has wrapped
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

    torch's own steps do both themselves with ``fused=True``, and say so by an attribute that only these have
    (:func:`check_scaling`).
    """
    if hasattr(optimizer, _SCALES):
        setattr(optimizer, _SCALES, False)


def ask_scalers_to_show(optimizer: torch.optim.Optimizer) -> None:
    """Have a ``GradScaler`` call the step without a look at gradients, and :func:`comes_from_a_scaler` tell of it.

    Raises:
        ValueError: if this torch has scalers and optimizers speak of that in another way.
    """
    _check_scaling()
    setattr(optimizer, _SCALES, True)


def ask_scalers_no_more(optimizer: torch.optim.Optimizer) -> None:
    """Undo :func:`ask_scalers_to_show`: to scalers, ``optimizer`` is as any other."""
    vars(optimizer).pop(_SCALES, None)


def comes_from_a_scaler(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a ``GradScaler`` makes the step under way: it hangs its scale, a public name, on the optimizer."""
    comes = "grad_scale" in vars(optimizer)
    for name in ("grad_scale", "found_inf"):
        vars(optimizer).pop(name, None)
    return comes


def check_scaling(optimizer: torch.optim.Optimizer) -> None:
    """Check that what ``optimizer`` says to a ``GradScaler`` is understood here.

    Raises:
        ValueError: if it is one with ``fused=True``, and this torch says it in another way.
    """
    if optimizer.defaults.get("fused"):
        _check_scaling()


@cache
def _check_scaling() -> None:
    fused = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1, fused=True)
    look_up(fused, _SCALES, host=TORCH, feature="to have a GradScaler divide gradients before the step")


def counts_calls(step: Any) -> bool:
    """Whether ``step`` is what a scheduler has put in place of its optimizer's, to see that it was called.

    Raises:
        ValueError: if this torch marks it in another way.
    """
    _check_counting()
    return hasattr(step, _WRAPPED)


def count_calls(optimizer: torch.optim.Optimizer, patched: Any) -> None:
    """Have ``patched``, put in place of ``optimizer``'s step by a scheduler, run the step of the class that it has now.

    It ran that of the class before. Schedulers look at it to warn of a wrong order of calls.
    """
    reference = ref(optimizer)

    @wraps(patched)
    def step(*args: Any, **kwargs: Any) -> Any:
        own = reference()
        assert own is not None
        setattr(own, _CALLED, True)
        return type(own).step(own, *args, **kwargs)

    setattr(step, _WRAPPED, True)
    optimizer.step = step  # type: ignore[method-assign]


@cache
def _check_counting() -> None:
    feature = "to leave a scheduler in place that watches its optimizer's step"
    param = torch.zeros(1, requires_grad=True)
    param.grad = torch.zeros(1)
    watched = torch.optim.SGD([param], 0.1)
    _scheduler = torch.optim.lr_scheduler.ConstantLR(watched)
    watched.step()
    look_up(watched.step, _WRAPPED, host=TORCH, feature=feature)
    look_up(watched, _CALLED, host=TORCH, feature=feature)


def takes_addresses_for_names(optimizer_class: type[torch.optim.Optimizer]) -> bool:
    """Whether a step of ``optimizer_class`` asks for the address of a tensor to tell it from others, never to go there.

    HeavyBall keys its state so; its kernels are compiled by torch alone.
    """
    return any(kind.__module__.partition(".")[0] == "heavyball" for kind in optimizer_class.__mro__)
