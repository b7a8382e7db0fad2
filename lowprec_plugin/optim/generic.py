"""The step of an optimizer that has no fused update: its own, on the parameters that it has.

The parameters are the same objects, in fixed-point. Inside an :class:`~lowprec_plugin.tensor.opening.Opening` what the
step writes to stays open as floats, one parameter with its state at a time, and is rounded once when the step goes on
to the next. A step that writes to many at once has them open at once.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.random_bits import key_of, substream
from lowprec_plugin.arithmetic.reference.update import counted
from lowprec_plugin.compat.compiling import eagerly
from lowprec_plugin.compat.optimizers import takes_addresses_for_names, unhooked_step, without_hooks
from lowprec_plugin.optim.adopted import Adopted
from lowprec_plugin.optim.finite import NonFiniteGradientError, came_to_nan, gradients_are_finite
from lowprec_plugin.optim.naming import names_in
from lowprec_plugin.optim.state import (
    Looks,
    Place,
    float_bytes,
    is_held_elsewhere,
    is_stored,
    looks_of,
    name_copies,
    places,
    round_state,
)
from lowprec_plugin.tensor.coded import Open, Shared
from lowprec_plugin.tensor.dtensor import as_floats, fixed_part, local_part, placed_part
from lowprec_plugin.tensor.opening import Opening, part_from_padding, suspended

_FLOAT32_MAX = torch.finfo(torch.float32).max


class _SkippedStepError(Exception):
    """Gradients are not finite, and such steps are left out."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss


class OwnStep:
    """An optimizer's own step, under way; ``names``: of its parameters by id, if the step is counted."""

    def __init__(self, optimizer: Adopted, names: Mapping[int, str]) -> None:
        self.optimizer, self._names = optimizer, names
        self.rounded = False
        self._params: dict[Hashable, tuple[dict[str, Any], Tensor]] = {}
        self._roundings: dict[tuple[int, str], int] = {}
        owners: list[tuple[Shared, Hashable]] = []
        for group in optimizer.param_groups:
            for param in group["params"]:
                if fixed_part(param) is not None:
                    self._params[id(param)] = group, param
                    part_from_padding(placed_part(param))
                    owners.append((placed_part(param)._shared, id(param)))
        for _, param in self._params.values():
            for holder, key, name in places(optimizer.state.get(param)):
                if fixed_part(holder[key]) is not None:
                    part = placed_part(holder[key])
                    owners.append((part._shared, id(param)))
                    self._roundings[id(param), name] = part.roundings
        kind = optimizer.float_class
        self.opening = Opening(owners, self._close, kind.__name__, takes_addresses_for_names(kind))

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        step = unhooked_step(self.optimizer, self.optimizer.float_class)
        with self.opening.entered(), eagerly():
            result = step(self.optimizer, *args, **kwargs)
        for _, param in self._params.values():  # of what the step held itself until now
            self._store_new(param)
        return result

    def _close(self, owner: Hashable | None, members: list[tuple[Shared, Open]]) -> None:
        """Round what is open of one parameter, and store state that has come up; all of it, or none."""
        group, param = self._params.get(owner, ({}, None))
        self.rounded = True
        if param is None:
            for shared, opened in members:
                _check_not_nan(bool(opened.floats.isnan().any()), group, None)
                self._round(shared, opened)
            return
        new = self._new(param)
        values = [local_part(holder[key]) for holder, key, _ in new]
        looks = looks_of(param, values, [opened.floats for _, opened in members])
        _check_not_nan(any(each.nan for each in looks), group, param)
        own = placed_part(param)
        for (shared, opened), look in zip(members, looks, strict=False):
            if shared is own._shared:
                self._round_param(param, shared, opened)
            else:
                squares = opened.format.squared and look.negative
                self._round(shared, self._signed(param, shared, opened) if squares else opened)
        self._store(param, new, looks[len(members) :])

    def _round(self, shared: Shared, opened: Open) -> int:
        settings = self.optimizer.fixed_point
        opened.floats.clamp_(-_FLOAT32_MAX, _FLOAT32_MAX)
        key = key_of(substream(opened.stream, "in place"), shared.roundings)
        shared.roundings += 1
        _, saturated = ops.quantize(
            opened.floats, opened.format, rounding=settings.rounding, key=key, first_row=shared.first_row,
            out=opened.blocks,
        )  # fmt: skip
        settings.saturated += saturated
        return saturated

    def _round_param(self, param: Any, shared: Shared, opened: Open) -> None:
        settings = self.optimizer.fixed_point
        measured = settings.counting or settings.tally is not None
        before = ops.dequantize(opened.blocks, opened.format) if measured else None
        if before is not None and settings.tally is not None:
            settings.tally.add(before, opened.floats, opened.blocks, opened.format)
        saturated = self._round(shared, opened)
        if before is not None and settings.counting:
            counts = counted(before, opened.floats, opened.blocks, opened.format)
            settings.note(self._names[id(param)], counts._replace(saturated=saturated))

    def _signed(self, param: Tensor, shared: Shared, opened: Open) -> Open:
        """``opened``, in a format that has negative numbers: no root of such a state can be stored."""
        signed = replace(opened.format, squared=False)
        for holder, key, _ in places(self.optimizer.state.get(param)):
            part = fixed_part(holder[key])
            if part is not None and part._shared is shared:
                part.format = signed
        return replace(opened, format=signed)

    def _new(self, param: Tensor) -> list[Place]:
        """Where the state of ``param`` holds floats that nothing else does, for which codes could stand."""
        found = []
        for place in places(self.optimizer.state.get(param)):
            holder, key, name = place
            if is_stored(self.optimizer, param, name, holder[key]) and fixed_part(holder[key]) is None:
                found += [] if is_held_elsewhere(place) else [place]
        return found

    def _store_new(self, param: Tensor) -> None:
        new = self._new(param)
        looks = looks_of(param, [local_part(holder[key]) for holder, key, _ in new])
        _check_not_nan(any(each.nan for each in looks), {}, param)
        self._store(param, new, looks)

    def _store(self, param: Tensor, new: list[Place], looks: list[Looks]) -> None:
        name_copies(param, self.optimizer.state.get(param))
        for (holder, key, name), look in zip(new, looks, strict=True):
            roundings = self._roundings.get((id(param), name), 0)
            holder[key] = round_state(self.optimizer, param, name, holder[key], look, roundings)
            self._roundings[id(param), name] = roundings + 1


def _check_not_nan(nan: bool, group: dict[str, Any], param: Tensor | None) -> None:
    if nan:
        raise came_to_nan(
            group, param, "it and its state were not written; or did rounding make a difference negative whose"
            " root is taken? Then choose more bits of state",
        )  # fmt: skip


def step_whole(optimizer: Adopted, closure: Callable[[], Any] | None, args: Any, kwargs: Any) -> Any:
    """Run the optimizer's own step, once. It may call its closure as often as it likes.

    Raises:
        NonFiniteGradientError: if a gradient is NaN or infinite, or the step comes to NaN. In a step that skips, too,
            if the closure is called again after the step has written: there is no going back.
    """
    settings = optimizer.fixed_point
    own = OwnStep(optimizer, names_in(optimizer) if settings.counting else {})

    def looked_at(loss: Any) -> Any:
        if gradients_are_finite(optimizer):
            return loss
        if own.rounded:
            raise NonFiniteGradientError(
                f"a gradient of a further call of {optimizer.float_class.__name__}'s closure is NaN or infinite; the "
                "step has written to parameters before that call: go back to a checkpoint"
            )
        raise _SkippedStepError(loss)

    try:
        if closure is None:
            looked_at(None)
            result = own.run(*args, **kwargs)
        else:

            @wraps(closure)
            def looking_closure(*given: Any, **named: Any) -> Any:
                with suspended(), eagerly(False):
                    loss = closure(*given, **named)
                return looked_at(loss)

            result = own.run(looking_closure, *args, **kwargs)
    except _SkippedStepError as skipped:
        settings.skipped_steps += 1
        return skipped.loss
    _say_once(optimizer, own.opening)
    return result


def step_alone(optimizer: Adopted, group: dict[str, Any], params: list[Tensor], names: Mapping[int, str]) -> None:
    """Run the optimizer's own step over ``params`` of ``group`` alone: one of torch's, which treats each by itself.

    Args:
        names: of all parameters by id, if the step is counted.

    Raises:
        NonFiniteGradientError: if it comes to NaN. Nothing of ``params``, and of their state, is changed then.
    """
    fixed = [param for param in params if fixed_part(param) is not None]  # of others NaN is not looked for
    before = {param: _kept(optimizer.state[param]) for param in fixed if param in optimizer.state}
    try:
        with _alone(optimizer, group, params):
            OwnStep(optimizer, names).run()
    except NonFiniteGradientError:
        for param in fixed:
            if param in before:
                optimizer.state[param] = before[param]
            else:
                optimizer.state.pop(param, None)
        raise


def _kept(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` as it is: fixed-point tensors keep their codes until a step is whole, floats are copied."""
    return {
        name: value.clone() if isinstance(value, Tensor) and fixed_part(value) is None else value
        for name, value in state.items()
    }


@contextmanager
def _alone(optimizer: Adopted, group: dict[str, Any], params: list[Tensor]) -> Iterator[None]:
    # Its step would run with autograd on, which refuses to write to codes that require gradients.
    changed = {"differentiable": False} if any(fixed_part(param) is not None for param in params) else {}
    groups, defaults = optimizer.param_groups, optimizer.defaults
    alone = group | changed | {"params": params}
    optimizer.param_groups, optimizer.defaults = [alone], defaults | changed
    try:
        yield
    finally:
        optimizer.param_groups, optimizer.defaults = groups, defaults
        group.update({name: value for name, value in alone.items() if name not in ("params", *changed)})


def update_as_float(optimizer: Adopted, group: dict[str, Any], param: Tensor) -> Tensor:
    """What one of torch's own steps would make of ``param`` in float32. Nothing is changed."""
    leaf = torch.nn.Parameter(as_floats(param), requires_grad=False)
    assert param.grad is not None
    leaf.grad = param.grad.to(torch.float32)
    twin = object.__new__(optimizer.float_class)
    twin.__dict__.update({name: value for name, value in optimizer.__dict__.items() if name != "step"})
    without_hooks(twin)
    state = {name: _float_copy(value) for name, value in optimizer.state.get(param, {}).items()}
    twin.state = defaultdict(dict, {leaf: state})
    twin.defaults = optimizer.defaults | {"differentiable": False}
    twin.param_groups = [group | {"params": [leaf], "differentiable": False}]
    unhooked_step(optimizer, optimizer.float_class)(twin)
    return leaf.detach()


def _float_copy(value: Any) -> Any:
    floats = as_floats(value)
    return floats.clone() if floats is value and isinstance(value, Tensor) else floats


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
    params = [param for group in optimizer.param_groups for param in group["params"]]
    held = float_bytes(optimizer)
    fixed = sum(4 * local_part(param).numel() for param in params if fixed_part(param) is not None)
    if fixed and held > fixed // 8:
        said.append(f"holds {held:,} bytes of its own in floats, where the parameters would take {fixed:,}")
    if said:
        warnings.warn(f"{name} {', and '.join(said)}: these bytes are not saved", stacklevel=4)
