"""Who has called an operation of torch's, where the operation does not tell.

The stack is walked up to the first caller that is not torch's own: docs/decisions/0014-callers.md says what for, and
what was tried in its place. Callers are known by the modules that torch's public functions are written in.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor


def fsdp_calls() -> bool:
    """Whether FSDP2 has called the operation under way."""
    return _called_by(_FSDP2)


def distribute_tensor_calls() -> bool:
    """Whether ``torch.distributed.tensor.distribute_tensor`` has called the operation under way."""
    return _called_by(_DISTRIBUTING)


def _called_by(modules: str) -> bool:
    """Whether a caller is the module of this name, or in the folder."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if f"{name}.".startswith(f"{modules}."):
            return True
        if name.partition(".")[0] not in ("torch", "lowprec_plugin"):
            return False
        frame = frame.f_back
    return False


def _module_of(function: Callable[..., Any]) -> str:
    """The name of the module that ``function`` is written in, under whatever decorators."""
    return str(inspect.unwrap(function).__globals__["__name__"])


_FSDP2 = _module_of(fully_shard).rpartition(".")[0]
_DISTRIBUTING = _module_of(distribute_tensor)
