"""The inside of ``DistributedDataParallel``."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lowprec_plugin.compat.lookup import TORCH, look_up


def registered_hook(model: DistributedDataParallel) -> Any:
    """The communication hook that ``model`` has, or ``None``.

    Raises:
        ValueError: if this torch keeps it elsewhere.
    """
    feature = "to leave a communication hook of your own in place"
    hooks = look_up(model, "_comm_hooks", host=TORCH, feature=feature)
    return hooks[0][0] if hooks else None


def leave_out(module: nn.Module, names: list[str]) -> None:
    """Have ``DistributedDataParallel(module)`` leave the parameters ``names`` out, beside those it leaves out already.

    Raises:
        ValueError: if this torch keeps them elsewhere.
    """
    feature = "to exchange gradients in codes"
    tell = look_up(DistributedDataParallel, "_set_params_and_buffers_to_ignore_for_model", host=TORCH, feature=feature)
    before = getattr(module, "_ddp_params_and_buffers_to_ignore", ())
    tell(module, list(dict.fromkeys((*before, *names))))
