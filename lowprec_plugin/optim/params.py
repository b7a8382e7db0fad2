"""What an optimizer updates."""

from __future__ import annotations

import torch
from torch import Tensor


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters of all groups of ``optimizer``, in their order."""
    return [param for group in optimizer.param_groups for param in group["params"]]
