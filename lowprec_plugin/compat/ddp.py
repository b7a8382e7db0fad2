"""The inside of ``DistributedDataParallel``."""

from __future__ import annotations

from typing import Any

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
