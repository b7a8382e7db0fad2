"""Turn a user's own torch.optim optimizer into one that updates fixed-point parameters."""

from __future__ import annotations

import warnings
import weakref
from functools import wraps
from typing import Any

import torch

from lowprec_plugin.formats import check_kind
from lowprec_plugin.optim.fused import FUSED
from lowprec_plugin.optim.settings import StepSettings
from lowprec_plugin.optim.step import FixedPointStep, label_of
from lowprec_plugin.sharding import as_floats, fixed_part

_UNFIT: dict[type[torch.optim.Optimizer], str] = {
    torch.optim.LBFGS: "its step searches along all parameters at once; use an optimizer that updates each by itself",
    torch.optim.SparseAdam: "it takes sparse gradients; use torch.optim.Adam and embeddings with sparse=False",
}


def adopt(optimizer: torch.optim.Optimizer, settings: StepSettings | None = None) -> torch.optim.Optimizer:
    """Make ``optimizer`` update fixed-point parameters, in place: the same object, whose schedulers stay bound.

    Its class becomes a subclass of what it was. SGD, Adam and AdamW get a fused update; any other goes through the
    generic path, one parameter at a time, and a step that is not torch's own gets a warning: what it computes across
    parameters is then computed of each. State the optimizer already has is rounded to nearest; so is that of one which
    is adopted already, if ``settings`` want another format, and its counts go on in them. An LBFGS or SparseAdam all of
    whose parameters are in float is left as it is.

    Args:
        optimizer: any optimizer of ``torch.optim`` or derived from ``torch.optim.Optimizer`` that updates every
            parameter by itself. Changed in place.
        settings: see :class:`StepSettings`.

    Returns:
        ``optimizer``.

    Raises:
        ValueError: for an optimizer that cannot work so, with the reason, or state that is not finite. Nothing is
            changed then.
    """
    check_kind(optimizer, torch.optim.Optimizer, "optimizer")
    if settings is not None:
        check_kind(settings, StepSettings, "settings")
    if isinstance(optimizer, FixedPointStep):
        if settings is not None:
            before, optimizer.fixed_point = optimizer.fixed_point, settings
            try:
                _store_states(optimizer)
            except ValueError:
                optimizer.fixed_point = before
                raise
            settings.skipped_steps, settings.saturated = before.skipped_steps, before.saturated
        return optimizer
    float_class = type(optimizer)
    params = (param for group in optimizer.param_groups for param in group["params"])
    fixed = next((param for param in params if fixed_part(param) is not None), None)
    for unfit, reason in _UNFIT.items():
        if isinstance(optimizer, unfit):
            if fixed is None:
                return optimizer
            raise ValueError(
                f"torch.optim.{unfit.__name__} cannot update fixed-point parameters, such as {label_of(fixed)}: "
                f"{reason}, or keep_float for all that it updates"
            )
    patched = optimizer.__dict__.get("step")
    if patched is not None and not hasattr(patched, "_wrapped_by_lr_sched"):
        raise ValueError(
            f"the step of this {float_class.__name__} has been replaced by {patched!r}; adopt it before that"
        )
    optimizer.__class__ = _fixed_point_class(float_class)
    assert isinstance(optimizer, FixedPointStep)
    optimizer.fixed_point = settings or StepSettings()
    try:
        _store_states(optimizer)
    except ValueError:
        del optimizer.fixed_point
        optimizer.__class__ = float_class  # type: ignore[assignment]
        raise
    torch.optim.Optimizer.__setstate__(optimizer, {})  # torch's way to hook the new class's step for profiling
    if patched is not None:
        _count_steps(optimizer, patched)
    # A class of the user's may well inherit its step from torch.optim, where each parameter is updated by itself.
    if fixed is not None and float_class not in FUSED and not float_class.step.__module__.startswith("torch.optim."):
        warnings.warn(
            f"{float_class.__name__} steps fixed-point parameters one at a time: what its step computes across "
            "parameters, such as a norm of all their gradients, is then of each by itself. If it computes none, "
            "nothing is amiss; if it does, use an optimizer of torch.optim, or keep_float for its parameters",
            stacklevel=2,
        )
    return optimizer


def _store_states(optimizer: FixedPointStep) -> None:
    """Hold the state of fixed-point parameters as the settings say, rounded to nearest; all of it, or none."""
    stored: list[tuple[dict[str, Any], str, Any]] = []
    for param, state in optimizer.state.items():
        if fixed_part(param) is not None:
            for name, value in state.items():
                part = fixed_part(value)
                if part is not None and part.format != optimizer.state_format(param, name):
                    # Another format is what the settings ask for; a checkpoint in one, by contrast, has to be exact.
                    value = as_floats(value)
                stored.append((state, name, optimizer.store_state(param, name, value)))
    for state, name, value in stored:
        state[name] = value


_classes: dict[type[torch.optim.Optimizer], type[torch.optim.Optimizer]] = {}


def _fixed_point_class(float_class: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    if float_class not in _classes:
        name = f"FixedPoint{float_class.__name__}"
        members = {"float_class": float_class, "__module__": __name__, "__reduce__": _reduce}
        _classes[float_class] = type(name, (FixedPointStep, float_class), members)
    return _classes[float_class]


def _reduce(self: FixedPointStep) -> tuple[Any, ...]:
    """Copies and pickles of an adopted optimizer: its class is made anew from the float one."""
    return _blank, (self.float_class,), self.__getstate__()


def _blank(float_class: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    return object.__new__(_fixed_point_class(float_class))


def _count_steps(optimizer: torch.optim.Optimizer, patched: Any) -> None:
    """Do for the new step what a scheduler's patch did for the old: note that it was called.

    Schedulers replace ``optimizer.step`` by a wrapper of the class's function, so that they can warn of a wrong order
    of calls; the one put here tells them the same.
    """
    reference = weakref.ref(optimizer)

    @wraps(patched)
    def step(*args: Any, **kwargs: Any) -> Any:
        own = reference()
        assert own is not None
        own._opt_called = True  # type: ignore[attr-defined]
        return type(own).step(own, *args, **kwargs)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = step  # type: ignore[method-assign]
