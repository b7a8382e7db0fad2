"""What parameters are called in messages and counts."""

from __future__ import annotations

import torch
from torch import Tensor

from lowprec_plugin.tensor.dtensor import local_part


def label_of(param: Tensor) -> str:
    """The parameter's name, or its shape if it has none."""
    label = getattr(local_part(param), "label", "")
    return f"parameter {label!r}" if label else f"a parameter of shape {tuple(param.shape)}"


def names_in(optimizer: torch.optim.Optimizer) -> dict[int, str]:
    """The label of each parameter, by its id; its place in ``optimizer`` where it has none, or not alone."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    params = (param for group in optimizer.param_groups for param in group["params"])
    for place, param in enumerate(params):
        label = getattr(local_part(param), "label", "")
        names[id(param)] = f"parameter {place}" if not label or label in taken else label
        taken.add(label)
    return names
