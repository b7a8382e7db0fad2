"""How torch marks a module that it has compiled, and how what is compiled is run as it was written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lowprec_plugin.compat.lookup import TORCH, check_module, look_up

_DYNAMO = "torch._dynamo"
_FEATURE = "to see whether a module is compiled"


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module`` is what ``torch.compile(module)`` returned, or was compiled by ``module.compile()``.

    Raises:
        ValueError: if this torch marks such modules in another way.
    """
    if look_up(module, "_compiled_call_impl", host=TORCH, feature=_FEATURE) is not None:
        return True
    check_module(_DYNAMO, host=TORCH, feature=_FEATURE)
    dynamo = sys.modules.get(_DYNAMO)  # imported by the first compilation
    return dynamo is not None and isinstance(module, look_up(dynamo, "OptimizedModule", host=TORCH, feature=_FEATURE))


@contextmanager
def eagerly(eager: bool = True) -> Iterator[None]:
    """Run functions that ``torch.compile`` has compiled as they were written; with ``False`` as compiled again."""
    check_module(_DYNAMO, host=TORCH, feature="to run compiled functions as they were written")
    if _DYNAMO not in sys.modules:  # nothing has been compiled
        yield
        return
    with torch.compiler.set_stance("force_eager" if eager else "default"):
        yield
