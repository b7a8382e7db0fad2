"""The step of an optimizer that has no fused update: its own, on floats, one parameter at a time."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lowprec_plugin import ops
from lowprec_plugin.compat.optimizers import unhooked_step, without_hooks
from lowprec_plugin.sharding import as_floats, fixed_part, local_part, placed_part
from lowprec_plugin.update_reference import counted

if TYPE_CHECKING:
    from lowprec_plugin.optim.step import FixedPointStep

_FLOAT32_MAX = torch.finfo(torch.float32).max
#: Attributes that the optimizer of a float step has to itself.
_OF_THE_TWIN = {"state", "param_groups", "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"}


class Before(NamedTuple):
    """An optimizer's attributes and one of its groups as they were before its step, which is many float steps here.

    Each of them begins with these, set :func:`apart`: a count of steps kept in either goes on by one, not by one per
    parameter.
    """

    attributes: dict[str, Any]
    group: dict[str, Any]


def step_one(optimizer: FixedPointStep, before: Before, group: dict[str, Any], param: Tensor) -> None:
    """Dequantise ``param`` and its state, let the optimizer's own step update the floats, and round them back.

    Of a sharded parameter the optimizer sees a sharded float tensor: what it computes over rows or columns is the
    whole tensor's. What overflows float32 saturates.

    Raises:
        NonFiniteGradientError: if a NaN came up. Nothing of ``param`` is written then.
    """
    settings, part = optimizer.fixed_point, placed_part(param)
    held = optimizer.state[param]
    start = ops.dequantize(part.blocks, part.format) if settings.counting else None
    leaf, floats = _as_leaf(optimizer, before.group, param)
    twin = _step_as_float(optimizer, before, [leaf], {leaf: floats})
    computed = local_part(leaf.detach())
    for value in (computed, *(local_part(floats[name]) for name in floats if is_elementwise(floats[name], param))):
        if bool(value.isnan().any()):
            raise optimizer.came_to_nan(
                group, param, "it and its state were not written; or did rounding make a difference negative whose root"
                " is taken? Then choose more bits of state",
            )  # fmt: skip
        value.clamp_(-_FLOAT32_MAX, _FLOAT32_MAX)
    saturated = 0
    for name, value in floats.items():
        if fixed_part(held.get(name)) is not None:
            saturated += placed_part(held[name])._store(local_part(value), settings.rounding)
        else:
            held[name] = optimizer.store_state(param, name, value)
    saturated += part._store(computed, settings.rounding)  # last, for state may be refused
    settings.saturated += saturated
    _note_of_itself(optimizer, before, group, twin)
    if start is not None:
        counts = counted(start, computed.reshape(start.shape), part.blocks, part.format)
        optimizer.note(param, counts._replace(saturated=saturated))


def update_as_float(optimizer: FixedPointStep, group: dict[str, Any], param: Tensor) -> Tensor:
    """What the optimizer's own step would make of ``param`` in float32. Nothing is changed."""
    leaf, floats = _as_leaf(optimizer, group, param)
    _step_as_float(optimizer, Before(optimizer.__dict__, group), [leaf], {leaf: floats})
    return leaf.detach()


def step_floats(optimizer: FixedPointStep, before: Before, group: dict[str, Any], params: list[Tensor]) -> None:
    """The optimizer's own step on parameters that are kept in float."""
    _note_of_itself(optimizer, before, group, _step_as_float(optimizer, before, params, optimizer.state))


def _as_leaf(
    optimizer: FixedPointStep, group: dict[str, Any], param: Tensor
) -> tuple[torch.nn.Parameter, dict[str, Any]]:
    """``param`` with its gradient, and its state, in float32: copies."""
    # differentiable=True steps with autograd on, which refuses to write to a leaf that requires gradients.
    leaf = torch.nn.Parameter(as_floats(param), requires_grad=not group.get("differentiable"))
    assert param.grad is not None
    leaf.grad = param.grad.to(torch.float32)
    state = {name: (value, as_floats(value)) for name, value in optimizer.state.get(param, {}).items()}
    return leaf, {
        name: floats.clone() if floats is value and isinstance(value, Tensor) else floats
        for name, (value, floats) in state.items()
    }


def is_elementwise(value: Any, param: Tensor) -> bool:
    """Whether ``value`` of an optimizer's state has a number for every element of ``param``."""
    return isinstance(value, Tensor) and value.shape == param.shape and value.is_floating_point()


def _step_as_float(
    optimizer: FixedPointStep, before: Before, params: list[Any], state: dict[Tensor, dict[str, Any]]
) -> torch.optim.Optimizer:
    """Run the float class's step over ``params`` alone. ``state`` is changed in place, the optimizer is not.

    Returns:
        the optimizer of the float class that made the step.
    """
    twin = object.__new__(optimizer.float_class)
    twin.__dict__.update({name: value for name, value in apart(before.attributes).items() if name != "step"})
    # The hooks have run, or will, around the step of the optimizer itself: its own, and those of every optimizer,
    # which torch wraps the step of a class in.
    without_hooks(twin)
    step = unhooked_step(optimizer, optimizer.float_class)
    twin.state = state if isinstance(state, defaultdict) else defaultdict(dict, state)
    twin.param_groups = [apart(before.group) | {"params": params}]
    step(twin)
    state.update(twin.state)
    return twin


def _note_of_itself(
    optimizer: FixedPointStep, before: Before, group: dict[str, Any], twin: torch.optim.Optimizer
) -> None:
    """Keep what a step has noted in its group or in attributes of the optimizer."""
    for name, value in twin.param_groups[0].items():
        if name != "params":
            _note(group, name, value, before.group.get(name))
    for name, value in twin.__dict__.items():
        if name not in _OF_THE_TWIN:
            _note(optimizer.__dict__, name, value, before.attributes.get(name))


def _note(noted: dict[str, Any], name: str, value: Any, before: Any) -> None:
    if value is before or (_are_alike(value, before) and torch.equal(value, before)):
        return  # what another parameter's part of this step may have noted stays
    held: Any = noted.get(name)
    if _are_alike(value, held):
        held.copy_(value)  # a tensor of the user's, such as a learning rate, stays the one it is
    else:
        noted[name] = value


def _are_alike(one: Any, other: Any) -> bool:
    kinds = [(each.shape, each.dtype, each.device) for each in (one, other) if _is_number(each)]
    return len(kinds) == 2 and kinds[0] == kinds[1]


def apart(noted: dict[str, Any]) -> dict[str, Any]:
    """``noted`` with copies of the tensors of one number: a step may count in place."""
    return {name: value.clone() if _is_number(value) else value for name, value in noted.items()}


def _is_number(value: Any) -> bool:
    """Whether ``value`` may be counted in; what gradients are wanted of, as of a learning rate, is not."""
    return isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad
