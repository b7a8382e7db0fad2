"""Whether an optimizer's state dict belongs together and to its parameters: looked at before any of it is taken up.

torch goes on without a word where the state of a parameter is not found, and so begins it anew; and it takes state of
any shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from lowprec_plugin.arithmetic.formulas import MOMENTUM
from lowprec_plugin.optim.fused import fused_update
from lowprec_plugin.tensor.dtensor import fixed_part

_MOST_STEPS = 2**53  # that a float counts one by one


def check_state_dict(
    optimizer_class: type[Any], groups: Iterable[dict[str, Any]], state_dict: Mapping[str, Any]
) -> None:
    """Check that every state is of one parameter, goes by a name that is its own, and has the parameter's shape.

    Args:
        optimizer_class: one of torch.optim's, or another.
        groups: the optimizer's own parameter groups.
        state_dict: what it is about to load.

    Raises:
        ValueError: naming the parameter's number and the state.
    """
    groups, given, states = list(groups), state_dict["param_groups"], state_dict["state"]
    if len(groups) != len(given):
        return  # torch refuses that itself, as it does groups of other lengths
    listed = Counter(number for group in given for number in group["params"])
    for number, count in listed.items():
        if count > 1:
            raise ValueError(f"the state dict lists parameter {number} {count} times: is it damaged?")
    for number in states:
        if isinstance(number, int) and number not in listed:
            raise ValueError(f"the state dict holds state of parameter {number}, which no group lists: is it damaged?")
    for own, group in zip(groups, given, strict=True):
        options = {**own, **group}
        update, _ = fused_update(optimizer_class, options)
        names = () if update is None else update.algorithm(options).states
        for param, number in zip(own["params"], group["params"], strict=False):
            state = states.get(number, {})
            _check_names(number, names, state)
            if "step" in state:
                _check_step(number, state["step"])
            for name, value in state.items():
                _check_shape(number, name, value, param, needed=name in names)


def _check_names(number: int, names: tuple[str, ...], state: Mapping[str, Any]) -> None:
    held = [name for name in names if state.get(name) is not None]
    missing = [name for name in names if name not in held]
    strange = [name for name, value in state.items() if name not in names and isinstance(value, Tensor) and value.dim()]
    # A momentum that is turned on begins anew, and torch's own SGD saves None where there is none yet.
    begins = names == MOMENTUM.states or not state
    if missing and (held or strange or not begins):
        others = strange or held or ["a count of steps"]
        raise ValueError(
            f"the state of parameter {number} has {others[0]!r} and no {missing[0]!r}, which would begin anew: is the "
            "state dict damaged, or another optimizer's?"
        )


def _check_step(number: int, step: Any) -> None:
    """A count of steps, as a number or a tensor of one."""
    value = step.item() if isinstance(step, Tensor) and step.numel() == 1 and not step.is_meta else step
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _MOST_STEPS:
        raise ValueError(f"parameter {number} has made {value!r} steps: is the state dict damaged?")


def _check_shape(number: int, name: str, value: Any, param: Tensor, *, needed: bool) -> None:
    """State with a number per element, by its name or because it is in fixed-point, has the codes' order too."""
    state, part = fixed_part(value), fixed_part(param)
    if not isinstance(value, Tensor) or not (needed or state is not None):
        return
    shaped = value.shape == param.shape or (not needed and value.numel() == param.numel())  # a flattened copy
    fits = shaped and (state is None or part is None or state.codes.shape == part.codes.shape)
    if not fits:
        held = "" if state is None else f" (codes of shape {tuple(state.codes.shape)})"
        raise ValueError(
            f"state {name!r} of parameter {number} has shape {tuple(value.shape)}{held}, and the parameter "
            f"{tuple(param.shape)}: is the state dict damaged, or another model's?"
        )
