"""An optimizer's own step, run once over all that it has, with its closure and what it says of its memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.compat.compiling import eagerly
from lowprec_plugin.optim.adopted import Adopted
from lowprec_plugin.optim.finite import NonFiniteGradientError, gradients_are_finite
from lowprec_plugin.optim.generic import OwnStep
from lowprec_plugin.optim.gradients import widen_gradients
from lowprec_plugin.optim.laid_out import check_holds_no_memory
from lowprec_plugin.optim.naming import names_in
from lowprec_plugin.optim.params import params_of
from lowprec_plugin.tensor.dtensor import fixed_part, local_part
from lowprec_plugin.tensor.gradient_hook import narrow_gradient
from lowprec_plugin.tensor.opening import Opening, suspended


class _SkippedStepError(Exception):
    """Gradients are not finite, and such steps are left out."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss


def step_whole(optimizer: Adopted, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the optimizer's own step, once, with its own arguments. It may call its closure as often as it likes.

    Raises:
        NonFiniteGradientError: if a gradient is NaN or infinite, or the step comes to NaN. In a step that skips, too,
            if that is so when the closure is called again: the step has written, and there is no going back.
        ValueError: if the step has laid out parameters in memory that it holds.
    """
    settings = optimizer.fixed_point
    own = OwnStep(optimizer, names_in(optimizer) if settings.counting else {})
    params = [param for group in optimizer.param_groups for param in group["params"]]
    calls = 0

    def looked_at(loss: Any) -> Any:
        written = own.rounded or calls > 1  # by the second call at the latest, and to floats beside fixed-point
        try:
            if gradients_are_finite(optimizer):
                widen_gradients(params)  # formulas may mix dtypes no more than torch does
                return loss
        except NonFiniteGradientError:
            if not written:
                raise
        if written:
            raise NonFiniteGradientError(
                f"a gradient of a further call of {optimizer.float_class.__name__}'s closure is NaN or infinite; the "
                "step has written to parameters before that call: go back to a checkpoint"
            )
        raise _SkippedStepError(loss)

    def looking(closure: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(closure)
        def looking_closure(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            with suspended(), eagerly(False):
                loss = closure(*given, **named)
            return looked_at(loss)

        return looking_closure

    given = dict(enumerate(args)) | kwargs
    closure = _closure_among(given, optimizer.float_class)
    try:
        if closure is None:
            looked_at(None)
        else:
            given[closure] = looking(given[closure])
        result = own.run(*(given[at] for at in range(len(args))), **{name: given[name] for name in kwargs})
    except _SkippedStepError as skipped:
        settings.skipped_steps += 1
        return skipped.loss
    finally:
        for param in params:
            narrow_gradient(param)
    check_holds_no_memory(optimizer)
    _say_once(optimizer, own.opening)
    return result


def _closure_among(given: dict[Any, Any], optimizer_class: type[torch.optim.Optimizer]) -> int | str | None:
    """Where the closure is among the arguments ``given`` to a step, by place or name; ``None`` if there is none."""
    names = [*signature(optimizer_class.step).parameters][1:]
    place = names.index("closure") if "closure" in names else 0
    return next((at for at in ("closure", place) if callable(given.get(at))), None)


def _say_once(optimizer: Adopted, opening: Opening) -> None:
    """Say, after the first step, what it holds in floats beyond one parameter at a time."""
    settings = optimizer.fixed_point
    if settings.said:
        return
    settings.said = True
    name, said = optimizer.float_class.__name__, []
    if opening.together > 1:
        said.append(
            f"writes to {opening.together} parameters at once, and has {opening.most:,} bytes of floats open meanwhile"
            + (" (foreach=False may have one at a time)" if "foreach" in optimizer.defaults else "")
        )
    held = _bytes_in_float(optimizer)
    fixed = sum(4 * local_part(param).numel() for param in params_of(optimizer) if fixed_part(param) is not None)
    if fixed and held > fixed // 8:
        said.append(f"holds {held:,} bytes of its own in floats, where the parameters would take {fixed:,}")
    if said:
        warnings.warn(f"{name} {', and '.join(said)}: these bytes are not saved", stacklevel=4)


def _bytes_in_float(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the float tensors that ``optimizer`` holds, in state of fixed-point parameters or elsewhere in it."""
    params = params_of(optimizer)
    in_float = [param for param in params if fixed_part(param) is None]
    seen = {id(known): 0 for param in in_float for known in (param, optimizer.state.get(param), param.grad)}
    seen |= {id(known): 0 for param in params for known in (param, param.grad)}
    _add_bytes(optimizer, seen)
    return sum(seen.values())


def _add_bytes(value: Any, seen: dict[int, int]) -> None:
    if id(value) in seen:
        return
    if isinstance(value, Tensor):
        local = local_part(value)
        counts = local.is_floating_point() and fixed_part(value) is None and local.numel() > 1
        seen[id(value)] = local.nbytes if counts else 0
    elif isinstance(value, torch.optim.Optimizer):
        _add_bytes(value.__dict__, seen)
    elif isinstance(value, (dict, list, tuple, set)):
        seen[id(value)] = 0
        for each in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            _add_bytes(each, seen)
