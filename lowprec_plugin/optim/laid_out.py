"""Parameters that an optimizer lays out in memory of its own, as parts of one flat tensor, to write to them there."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lowprec_plugin.optim.naming import label_of
from lowprec_plugin.sharding import fixed_part, placed_part


def check_not_laid_out(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that holds floats which were assigned to the ``.data`` of a parameter that it updates.

    Of a float parameter they would be its memory. Codes do not see what is written to them.

    Raises:
        ValueError: naming the parameter.
    """
    laid_out: dict[int, Tensor] = {}
    for param in (param for group in optimizer.param_groups for param in group["params"]):
        if fixed_part(param) is not None and (assigned := placed_part(param)._shared.assigned) is not None:
            memory = assigned()
            if memory is not None:
                laid_out.setdefault(memory.untyped_storage().data_ptr(), param)
    if not laid_out:
        return
    for held in tree_leaves(vars(optimizer)):
        if type(held) in (Tensor, torch.nn.Parameter) and held.layout == torch.strided:
            param = laid_out.get(held.untyped_storage().data_ptr())
            if param is not None:
                raise ValueError(
                    f"{type(optimizer).__name__} holds the memory that was assigned to the .data of {label_of(param)}, "
                    "and what it writes there does not reach fixed-point codes: use another optimizer, or keep_float "
                    "for all that it updates"
                )
