"""Out of fixed-point: weights and optimizer state as plain float tensors.

The way in needs no function of its own: ``module.load_state_dict`` and ``optimizer.load_state_dict`` of a fixed-point
run take up float state dicts, which is exact for what came from the same format. Else weights are rounded as the
parameters round, and state to nearest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowprec_plugin.compat.trees import tree_map_only
from lowprec_plugin.tensor.dtensor import as_floats


def float_state_dict(module_or_state: nn.Module | dict[str, Any]) -> dict[str, Any]:
    """A module's ``state_dict`` (or one read from a checkpoint) with every fixed-point tensor in float32, a copy."""
    state = module_or_state.state_dict() if isinstance(module_or_state, nn.Module) else module_or_state
    return tree_map_only(Tensor, as_floats, dict(state))  # type: ignore[no-any-return]


def plain_optimizer_state(optimizer_or_state: torch.optim.Optimizer | dict[str, Any]) -> dict[str, Any]:
    """An optimizer's ``state_dict`` as the plain ``torch.optim`` class would have written it.

    Moments are floats, and second moments are squares again, as torch.optim keeps them.
    """
    given = optimizer_or_state
    state = given.state_dict() if isinstance(given, torch.optim.Optimizer) else given
    return tree_map_only(Tensor, as_floats, dict(state))  # type: ignore[no-any-return]
