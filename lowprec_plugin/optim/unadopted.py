"""Optimizers that have not been adopted: what they would do in fixed-point, in silence, is said.

From the first fixed-point tensor on, a checkpoint's too, every optimizer's first step is looked at. Until then torch
does not know of this: a float32 run is none of its business, and many wrappers have less than torch's own optimizers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lowprec_plugin.tensor import first_tensor
from lowprec_plugin.tensor.dtensor import fixed_part
from lowprec_plugin.tensor.opening import current

#: By id: one that defines equality has no hash.
_known: WeakValueDictionary[int, torch.optim.Optimizer] = WeakValueDictionary()
_hooked: WeakValueDictionary[int, torch.optim.Optimizer] = WeakValueDictionary()


def look_again() -> None:
    """Look at the next step of every optimizer: its parameters may have become fixed-point."""
    _known.clear()


def _look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Warn of fixed-point state, or parameters, of an optimizer that is not adopted.

    Such a step works, in several operations that each round.
    """
    # An adopted one, or another that it steps in its own step.
    if hasattr(optimizer, "fixed_point") or current() is not None or _known.get(id(optimizer)) is optimizer:
        return
    _known[id(optimizer)] = optimizer
    if _hooked.get(id(optimizer)) is not optimizer:
        _hooked[id(optimizer)] = optimizer
        with suppress(AttributeError):  # one that never called Optimizer.__init__: what it wraps has the state
            optimizer.register_load_state_dict_post_hook(_look_at_loaded)
    name = type(optimizer).__name__
    if stored := _fixed_state(optimizer):
        warnings.warn(
            f"this {name} goes on from state in fixed-point ({', '.join(stored)}), as a checkpoint has it, by "
            "operations that round one by one, and its checkpoints hold the same: train with "
            "Trainer(plugins=lowprec_plugin.FixedPointPrecision()), or without Lightning use "
            "lowprec_plugin.optim.adopt(optimizer); to go on in float, replace each of the checkpoint's "
            "optimizer_states by lowprec_plugin.optim.plain_optimizer_state of it",
            stacklevel=3,
        )
    elif any(fixed_part(param) is not None for param in _params(optimizer)):
        warnings.warn(
            f"this {name} updates fixed-point parameters by operations that round one by one, and holds its state in "
            "float: use lowprec_plugin.optim.adopt(optimizer), or an optimizer of lowprec_plugin.optim",
            stacklevel=3,
        )


def _look_at_loaded(optimizer: torch.optim.Optimizer) -> None:
    """Look at its next step again: ``torch.distributed.checkpoint`` lets it make one before it loads state."""
    _known.pop(id(optimizer), None)


def _fixed_state(optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of what it holds in fixed-point."""
    held = getattr(optimizer, "state", None)
    states = [state for state in held.values() if isinstance(state, Mapping)] if isinstance(held, Mapping) else []
    return sorted({str(name) for state in states for name, value in state.items() if fixed_part(value) is not None})


def _params(optimizer: torch.optim.Optimizer) -> list[Any]:
    """What it updates, as far as it says so."""
    groups = getattr(optimizer, "param_groups", None)
    return [param for group in groups or () if isinstance(group, Mapping) for param in group.get("params", ())]


first_tensor.waiting.append(partial(register_optimizer_step_pre_hook, _look))
