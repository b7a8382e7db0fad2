"""Who has called an operation of torch's, where the operation does not tell.

The stack is walked up to the first caller that is not torch's own: docs/decisions/0014-callers.md says what for, and
what was tried in its place.
"""

from __future__ import annotations

import sys
from typing import Any

from lowprec_plugin.compat.lookup import TORCH, check_module

_FSDP2 = "torch.distributed.fsdp"
_DISTRIBUTING = "torch.distributed.tensor._api"


def fsdp_calls() -> bool:
    """Whether FSDP2 has called the operation under way.

    Raises:
        ValueError: if this torch keeps it elsewhere; so does the other function here.
    """
    return _called_by(_FSDP2, feature="to shard fixed-point parameters as codes")


def distribute_tensor_calls() -> bool:
    """Whether ``torch.distributed.tensor.distribute_tensor`` has called the operation under way."""
    return _called_by(_DISTRIBUTING, feature="to refuse to scatter fixed-point tensors")


def _called_by(package: str, *, feature: str) -> bool:
    check_module(package, host=TORCH, feature=feature)
    frame: Any = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if f"{name}.".startswith(f"{package}."):
            return True
        if name.partition(".")[0] not in ("torch", "lowprec_plugin"):
            return False
        frame = frame.f_back
    return False
