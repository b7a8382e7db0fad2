"""Turn a user's own optimizer into one that updates fixed-point parameters."""

from __future__ import annotations

import sys
from typing import Any

import torch

from lowprec_plugin.compat.optimizers import check_scaling, count_calls, counts_calls, scale_before_the_step
from lowprec_plugin.formats import check_kind
from lowprec_plugin.memory import with_held
from lowprec_plugin.optim.fused import fused_update
from lowprec_plugin.optim.laid_out import check_holds_no_memory
from lowprec_plugin.optim.naming import described
from lowprec_plugin.optim.params import params_of
from lowprec_plugin.optim.release import check_release
from lowprec_plugin.optim.settings import StepSettings
from lowprec_plugin.optim.state import squared_states_of, store_states
from lowprec_plugin.optim.step import REPLACED, FixedPointStep, steps_each_by_itself, update_in_backward
from lowprec_plugin.tensor.dtensor import fixed_part, place
from lowprec_plugin.tensor.gradient_hook import watch_gradient
from lowprec_plugin.text.option_error import Option, OptionError

#: By the module and name of their class, which need not have been imported.
_UNFIT = {
    ("torch.optim", "LBFGS"): "its step searches along all parameters at once; use an optimizer that updates each by "
    "itself",
    ("torch.optim", "SparseAdam"): "it takes sparse gradients; use torch.optim.Adam and embeddings with sparse=False",
    ("torch.distributed.optim", "ZeroRedundancyOptimizer"): "it sends parameters between processes itself; use "
    "FSDP2 (strategy ModelParallelStrategy), or DeepSpeed's ZeRO, which share out codes",
}


def adopt(optimizer: torch.optim.Optimizer, settings: StepSettings | None = None) -> torch.optim.Optimizer:
    """Make ``optimizer`` update fixed-point parameters, in place: the same object, whose schedulers stay bound.

    Its class becomes a subclass of what it was, of the same name. SGD, Adam and AdamW get a fused update. Any other
    runs its own step on the same parameter objects (see docs/decisions/0013-own-steps.md), and so do the optimizers
    that it holds. State the optimizer already has is rounded to nearest; so is that of one which is adopted already, if
    ``settings`` want another format, and its counts go on in them; optimizers that it holds get them too, unless they
    have been adopted with others. An LBFGS or SparseAdam all of whose parameters are
    in float is left as it is. A ``GradScaler`` divides by its scale before the step, also of one made with
    ``fused=True``.

    Args:
        optimizer: any optimizer of ``torch.optim`` or derived from ``torch.optim.Optimizer``. Changed in place.
        settings: see :class:`StepSettings`.

    Returns:
        ``optimizer``.

    Raises:
        ValueError: for an optimizer that cannot work so, with the reason, or state that is not finite. Nothing is
            changed then.
    """
    if not isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "step"):
        raise ValueError(
            f"optimizer={type(optimizer).__name__} is no torch.optim.Optimizer: if it steps one, adopt that before it "
            "is wrapped, or use an optimizer that does the same in its own step"
        )
    check_kind(optimizer, torch.optim.Optimizer, "optimizer")
    if settings is not None:
        check_kind(settings, StepSettings, "settings")
    every = with_held([optimizer])
    if not isinstance(optimizer, FixedPointStep):
        _adopt([each for each in every if not isinstance(each, FixedPointStep)], settings or StepSettings())
    elif settings is not None:
        before = optimizer.fixed_point
        _change_settings([each for each in every if getattr(each, "fixed_point", None) is before], settings)  # type: ignore[misc]
    return optimizer


def _adopt(optimizers: list[torch.optim.Optimizer], settings: StepSettings) -> None:
    fit = [each for each in optimizers if _check_fit(each, settings)]
    adopted: list[FixedPointStep] = []
    try:
        for each in fit:
            each.__class__ = _fixed_point_class(type(each))
            assert isinstance(each, FixedPointStep)
            adopted.append(each)
            each.fixed_point = settings
            for param in params_of(each):
                place(param)
                watch_gradient(param)
        store_states(*adopted)
    except ValueError:
        for one in adopted:
            one.__class__ = one.float_class  # type: ignore[assignment]
            del one.fixed_point
        raise
    for one in adopted:
        torch.optim.Optimizer.__setstate__(one, {})  # torch's way to hook the new class's step for profiling
        if (patched := one.__dict__.get("step")) is not None:
            count_calls(one, patched)
        scale_before_the_step(one)
        update_in_backward(one)


def _check_fit(optimizer: torch.optim.Optimizer, settings: StepSettings) -> bool:
    """Whether ``optimizer`` is to be adopted.

    Raises:
        ValueError: if it has to be, and cannot.
    """
    float_class = type(optimizer)
    fixed = next((param for param in params_of(optimizer) if fixed_part(param) is not None), None)
    for (module, name), reason in _UNFIT.items():
        unfit = getattr(sys.modules.get(module), name, None)
        if unfit is not None and isinstance(optimizer, unfit):
            if fixed is None:
                return False
            raise ValueError(
                f"{module}.{name} cannot update fixed-point parameters, such as {described(fixed)}: "
                f"{reason}, or keep_float for all that it updates"
            )
    patched = optimizer.__dict__.get("step")
    if patched is not None and not counts_calls(patched):
        raise ValueError(
            f"the step of this {float_class.__name__} has been replaced by {patched!r}; adopt it before that"
        )
    _check_radix_points(optimizer, float_class, settings)
    check_release(optimizer, settings, each_by_itself=steps_each_by_itself(float_class))
    check_scaling(optimizer)
    check_holds_no_memory(optimizer)
    return True


def _change_settings(optimizers: list[FixedPointStep], settings: StepSettings) -> None:
    """Give ``settings`` to optimizers that have been adopted with the same ones."""
    before = optimizers[0].fixed_point
    try:
        for each in optimizers:
            each.fixed_point = settings
            _check_radix_points(each, each.float_class, settings)
            update_in_backward(each)
        store_states(*optimizers)
    except ValueError:
        for each in optimizers:
            each.fixed_point = before
        raise
    settings.skipped_steps, settings.saturated = before.skipped_steps, before.saturated


def _check_radix_points(
    optimizer: torch.optim.Optimizer, float_class: type[torch.optim.Optimizer], settings: StepSettings
) -> None:
    if settings.state_fraction_length is None:
        return
    for group in optimizer.param_groups:
        update, reason = fused_update(float_class, group)
        may_square = squared_states_of(optimizer) != ()
        if update is None and may_square and any(fixed_part(param) is not None for param in group["params"]):
            raise OptionError(
                Option.given("state_fraction_length", settings.state_fraction_length),
                f": {reason}, and its state may be one of squares, which has to have a radix point in every block: "
                "leave it None, use SGD or Lion, or declare that there is none by an attribute squared_states = () of "
                "the optimizer",
            )


_classes: dict[type[torch.optim.Optimizer], type[torch.optim.Optimizer]] = {}


def _fixed_point_class(float_class: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    if float_class not in _classes:
        members = {
            **{name: FixedPointStep.__dict__[name] for name in REPLACED},
            "float_class": float_class, "__new__": _another, "__reduce__": _reduce, "__doc__": float_class.__doc__,
            "__module__": float_class.__module__, "__qualname__": float_class.__qualname__,
        }  # fmt: skip
        # The mixin is last: with another base in front Python would not let an object change its class.
        kind: Any = type(float_class)
        try:
            _classes[float_class] = kind(float_class.__name__, (float_class, FixedPointStep), members)
        except Exception as error:  # the class's own, of whatever kind
            raise ValueError(
                f"{float_class.__name__} lets no class be derived from it ({type(error).__name__}: {error}), which is "
                "what gets the step on fixed-point parameters; use another optimizer, or keep_float for its parameters"
            ) from error
    return _classes[float_class]


def _another(cls: type[FixedPointStep], *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
    """What ``type(optimizer)(params)`` makes of an adopted optimizer: one without settings, not adopted."""
    return cls.float_class(*args, **kwargs)


def _reduce(self: FixedPointStep) -> tuple[Any, ...]:
    """Copies and pickles of an adopted optimizer: its class is made anew from the float one."""
    return _blank, (self.float_class,), self.__getstate__()


def _blank(float_class: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    return object.__new__(_fixed_point_class(float_class))
