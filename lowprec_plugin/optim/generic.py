"""The step of an optimizer that has no fused update: its own, on floats, one parameter at a time."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowprec_plugin import ops
from lowprec_plugin.sharding import as_floats, fixed_part, local_part, placed_part
from lowprec_plugin.update_reference import counted

if TYPE_CHECKING:
    from lowprec_plugin.optim.step import FixedPointStep


def step_one(optimizer: FixedPointStep, group: dict[str, Any], param: Tensor) -> None:
    """Dequantise ``param`` and its state, let the optimizer's own step update the floats, and round them back.

    Of a sharded parameter the optimizer sees a sharded float tensor: what it computes over rows or columns is the
    whole tensor's.
    """
    settings, part = optimizer.fixed_point, placed_part(param)
    leaf = torch.nn.Parameter(as_floats(param))
    assert param.grad is not None
    leaf.grad = param.grad.to(torch.float32)
    held = optimizer.state[param]
    floats = {name: as_floats(value) for name, value in held.items()}
    before = ops.dequantize(part.blocks, part.format) if settings.counting else None
    _step_as_float(optimizer, group, [leaf], {leaf: floats})
    computed = local_part(leaf.detach())
    saturated = 0
    for name, value in floats.items():
        if fixed_part(held.get(name)) is not None:
            saturated += placed_part(held[name])._store(local_part(value), settings.rounding)
        else:
            held[name] = optimizer.store_state(param, name, value)
    saturated += part._store(computed, settings.rounding)  # last, for state may be refused
    settings.saturated += saturated
    if before is not None:
        counts = counted(before, computed.reshape(before.shape), part.blocks, part.format)
        optimizer.note(param, counts._replace(saturated=saturated))


def update_as_float(optimizer: FixedPointStep, group: dict[str, Any], param: Tensor) -> Tensor:
    """What the optimizer's own step would make of ``param`` in float32. Nothing is changed."""
    leaf = torch.nn.Parameter(as_floats(param))
    assert param.grad is not None
    leaf.grad = param.grad.to(torch.float32)
    floats = {name: as_floats(value) for name, value in optimizer.state.get(param, {}).items()}
    floats = {name: value.clone() if isinstance(value, Tensor) else value for name, value in floats.items()}
    _step_as_float(optimizer, dict(group), [leaf], {leaf: floats})
    return leaf.detach()


def step_floats(optimizer: FixedPointStep, group: dict[str, Any], params: list[Tensor]) -> None:
    """The optimizer's own step on parameters that are kept in float."""
    _step_as_float(optimizer, group, params, optimizer.state)


def _step_as_float(
    optimizer: FixedPointStep, group: dict[str, Any], params: list[Any], state: dict[Tensor, dict[str, Any]]
) -> None:
    """Run the float class's step over ``params`` alone. ``state`` is changed in place."""
    twin = object.__new__(optimizer.float_class)
    twin.__dict__.update({name: value for name, value in optimizer.__dict__.items() if name != "step"})
    # The hooks have run, or will, around the step of the optimizer itself.
    twin._optimizer_step_pre_hooks, twin._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
    twin.state = state if isinstance(state, defaultdict) else defaultdict(dict, state)
    twin.param_groups = [group | {"params": params}]
    twin.step()
    group.update({name: value for name, value in twin.param_groups[0].items() if name != "params"})
    state.update(twin.state)
