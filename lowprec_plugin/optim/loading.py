"""Whether an optimizer's state dict belongs together: looked at before anything of it is taken up.

torch goes on without a word where the state of a parameter is not found, and so begins it anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from lowprec_plugin.optim.fused import STATES, fused_update


def check_whole(optimizer_class: type[Any], groups: Iterable[dict[str, Any]], state_dict: Mapping[str, Any]) -> None:
    """Check that every state is of a parameter of one group, and that none goes by a name that is not its own.

    Args:
        optimizer_class: of torch.optim's, or another; ``groups``: the optimizer's own.
        state_dict: what it is about to load.

    Raises:
        ValueError: naming the parameter's number or the state.
    """
    given, states = state_dict["param_groups"], state_dict["state"]
    listed = Counter(number for group in given for number in group["params"])
    for number, count in listed.items():
        if count > 1:
            raise ValueError(f"the state dict lists parameter {number} {count} times: is it damaged?")
    for number in states:
        if isinstance(number, int) and number not in listed:
            raise ValueError(f"the state dict holds state of parameter {number}, which no group lists: is it damaged?")
    for own, group in zip(groups, given, strict=False):  # torch refuses another number of groups
        update, _ = fused_update(optimizer_class, {**own, **group})
        if update is None:
            continue
        names = STATES[update.algorithm({**own, **group})]
        for number in group["params"]:
            _check_names(number, names, states.get(number, {}))


def _check_names(number: int, names: tuple[str, ...], state: Mapping[str, Any]) -> None:
    missing = [name for name in names if name not in state]
    strange = [name for name, value in state.items() if name not in names and isinstance(value, Tensor) and value.dim()]
    if missing and strange:
        raise ValueError(
            f"the state of parameter {number} has {strange[0]!r} and no {missing[0]!r}, which would begin anew: is the "
            "state dict damaged, or another optimizer's?"
        )
