"""Optimizers that hold the memory that parameters had as floats, by ``.data`` or as parts of one flat tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from lowprec_plugin.compat.trees import tree_leaves
from lowprec_plugin.optim.naming import described
from lowprec_plugin.optim.params import params_of
from lowprec_plugin.tensor.copying import memory_is_held
from lowprec_plugin.tensor.dtensor import fixed_part


def check_holds_no_memory(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that holds floats which a parameter that it updates came from, and shared memory with.

    What it writes there would be the parameter's, were it in float, and codes do not see it. Its state does not count:
    what has been assigned to the parameter from there becomes codes.

    Raises:
        ValueError: naming the parameter.
    """
    if not memory_is_held():  # soon after quantize_ that is so, and every step asks
        return
    memory: dict[int, Tensor] = {}
    for param in params_of(optimizer):
        part = fixed_part(param)
        came_from = None if part is None else part._shared.memory
        if came_from is not None and not came_from.expired():  # type: ignore[no-untyped-call]
            memory.setdefault(came_from.cdata, param)
    if not memory:
        return
    for held in tree_leaves([value for name, value in vars(optimizer).items() if name != "state"]):
        if type(held) in (Tensor, torch.nn.Parameter) and held.layout == torch.strided:
            owner = memory.get(StorageWeakRef(held.untyped_storage()).cdata)  # type: ignore[no-untyped-call]
            if owner is not None:
                raise ValueError(
                    f"{type(optimizer).__name__} holds memory that {described(owner)} had as floats (by .data, or in a "
                    "flat tensor), and what it writes there does not reach fixed-point codes: make it after quantize_; "
                    "if it lays out parameters itself, use another, or keep_float for all that it updates"
                )
