"""The step of an optimizer that has no fused update: its own, on the parameters that it has.

The parameters are the same objects, in fixed-point. Inside an :class:`~lowprec_plugin.tensor.opening.Opening` what the
step writes to stays open as floats, one parameter with its state at a time, and is rounded once when the step goes on
to the next. A step that writes to many at once has them open at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.blocks import empty_blocks
from lowprec_plugin.arithmetic.random_bits import key_of, substream
from lowprec_plugin.arithmetic.reference.rounding import FLOAT32_MAX
from lowprec_plugin.arithmetic.reference.update import counted
from lowprec_plugin.compat.compiling import eagerly
from lowprec_plugin.compat.optimizers import takes_addresses_for_names, unhooked_step, without_hooks
from lowprec_plugin.optim.adopted import Adopted
from lowprec_plugin.optim.finite import NonFiniteGradientError, came_to_nan
from lowprec_plugin.optim.gradients import as_floats_meanwhile
from lowprec_plugin.optim.state import (
    Looks,
    Place,
    format_by_values,
    is_held_elsewhere,
    is_stored,
    is_unnamed,
    looks_of,
    name_copies,
    name_state,
    places,
    round_state,
)
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.coded import Open, Shared
from lowprec_plugin.tensor.dtensor import as_floats, fixed_part, local_part, on_any_rank, stored_part
from lowprec_plugin.tensor.opening import Opening, part_from_padding

_Held = list[tuple[FixedPointTensor, str]]


class OwnStep:
    """An optimizer's own step, under way; ``names``: of its parameters by id, if the step is counted."""

    def __init__(self, optimizer: Adopted, names: Mapping[int, str]) -> None:
        self.optimizer, self._names = optimizer, names
        self.rounded = False
        self._params: dict[Hashable, tuple[dict[str, Any], Tensor]] = {}
        self._roundings: dict[tuple[int, str], int] = {}
        self._gradients: set[Shared] = set()
        owners: list[tuple[Shared, Hashable]] = []
        for group in optimizer.param_groups:
            for param in group["params"]:
                if fixed_part(param) is not None:
                    self._params[id(param)] = group, param
                    part_from_padding(stored_part(param))
                    owners.append((stored_part(param)._shared, id(param)))
                    if (grad := fixed_part(param.grad)) is not None:
                        owners.append((grad._shared, id(param)))
                        self._gradients.add(grad._shared)
        for _, param in self._params.values():
            for holder, key, name in places(optimizer.state.get(param)):
                if fixed_part(holder[key]) is not None:
                    part = stored_part(holder[key])
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
        for shared, opened in members:
            if shared in self._gradients:  # which are not finite where they are marked
                _round_gradient(shared, opened)
        members = [member for member in members if member[0] not in self._gradients]
        if not members:
            return
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
        own = stored_part(param)
        held = self._held(param)
        weights = [ops.dequantize(own._planes, own.format)] if any(is_unnamed(part, own) for part, _ in held) else []
        weights += [opened.floats for shared, opened in members if shared is own._shared]
        fitted = [
            opened if shared is own._shared else self._fitted(param, held, shared, opened, look.negative, weights)
            for (shared, opened), look in zip(members, looks, strict=False)
        ]
        for (shared, _), opened in zip(members, fitted, strict=True):
            if shared is own._shared:
                self._round_param(param, shared, opened)
            else:
                self._round(shared, opened)
        self._store(param, new, looks[len(members) :])

    def _round(self, shared: Shared, opened: Open) -> int:
        settings = self.optimizer.fixed_point
        opened.floats.clamp_(-FLOAT32_MAX, FLOAT32_MAX)
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

    def _fitted(
        self, param: Tensor, held: _Held, shared: Shared, opened: Open, negative: bool, weights: list[Tensor]
    ) -> Open:
        """State of ``param`` that is open, in a format that fits it, and so is what of it is ``held``.

        No root of a negative number can be stored. And what has been cloned from the parameter, and is nothing like
        its ``weights`` any more (``clone().zero_()``), is stored as what comes up otherwise.
        """
        own, format = stored_part(param), opened.format
        parts = [(part, name) for part, name in held if part._shared is shared]
        if format.squared and negative:
            format = replace(format, squared=False)
        elif any(is_unnamed(part, own) for part, _ in parts):
            near = (float((opened.floats - each).norm()) < float(each.norm()) / 2 for each in weights)
            if not on_any_rank(any(near), [param]):
                format = format_by_values(self.optimizer, own, parts[0][1], negative)
                for part, name in parts:
                    name_state(part, param, name, copied=False)
        if format == opened.format:
            return opened
        blocks = empty_blocks(opened.floats.shape, format, opened.floats.device)
        for part, _ in parts:
            part.format = format
            part._codes, part._low, part._exponents = blocks
        return replace(opened, format=format, blocks=blocks)

    def _held(self, param: Tensor) -> _Held:
        """What the state of ``param`` holds in fixed-point, with its name."""
        found = ((fixed_part(holder[key]), name) for holder, key, name in places(self.optimizer.state.get(param)))
        return [(part, name) for part, name in found if part is not None]

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


def _round_gradient(shared: Shared, opened: Open) -> None:
    key = key_of(substream(opened.stream, "in place"), shared.roundings)
    shared.roundings += 1
    shared.factor = None
    ops.gather_(opened.floats, opened.blocks, opened.format, fresh=True, key=key, first_row=shared.first_row)


def _check_not_nan(nan: bool, group: dict[str, Any], param: Tensor | None) -> None:
    if nan:
        raise came_to_nan(
            group, param, "it and its state were not written; or did rounding make a difference negative whose"
            " root is taken? Then choose more bits of state",
        )  # fmt: skip


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
        with _alone(optimizer, group, params), as_floats_meanwhile(fixed):
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
    leaf.grad = as_floats(param.grad).to(torch.float32)
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
