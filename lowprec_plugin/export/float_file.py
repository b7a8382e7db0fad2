"""A plain float ``state_dict``, which torch reads without this package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lowprec_plugin.export.integers import State, split
from lowprec_plugin.optim import float_state_dict
from lowprec_plugin.text.files import whole_file


def to_float(module_or_state: nn.Module | State, path: str | Path) -> None:
    """Write the state dict in float32 with ``torch.save``, whole or not at all. Every stored number is exact in it.

    Raises:
        ValueError: for a shard, and if nothing is in fixed-point.
    """
    split(module_or_state)
    state = float_state_dict(module_or_state if isinstance(module_or_state, nn.Module) else dict(module_or_state))
    with whole_file(path) as partial:
        torch.save(state, partial)
