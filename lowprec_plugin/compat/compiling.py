"""How torch marks a module that it has compiled."""

from __future__ import annotations

import sys

from torch import nn

from lowprec_plugin.compat.lookup import TORCH, look_up

_FEATURE = "to see whether a module is compiled"


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module`` is what ``torch.compile(module)`` returned, or was compiled by ``module.compile()``.

    Raises:
        ValueError: if this torch marks such modules in another way.
    """
    if look_up(module, "_compiled_call_impl", host=TORCH, feature=_FEATURE) is not None:
        return True
    dynamo = sys.modules.get("torch._dynamo")  # imported by the first compilation
    return dynamo is not None and isinstance(module, look_up(dynamo, "OptimizedModule", host=TORCH, feature=_FEATURE))
