"""Hooks of a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lowprec_plugin.compat.lookup import TORCH, look_up


def has_gradient_hook(tensor: Tensor, hook: Callable[..., Any]) -> bool:
    """Whether ``hook`` is called when a gradient of ``tensor`` has been accumulated.

    Raises:
        ValueError: if this torch keeps such hooks elsewhere.
    """
    feature = "to see whether gradients become codes"
    hooks = look_up(tensor, "_post_accumulate_grad_hooks", host=TORCH, feature=feature)
    return hooks is not None and hook in hooks.values()


def remove_gradient_hook(tensor: Tensor, hook: Callable[..., Any]) -> None:
    """Have ``hook`` not be called any more when a gradient of ``tensor`` has been accumulated."""
    if has_gradient_hook(tensor, hook):
        hooks = look_up(tensor, "_post_accumulate_grad_hooks", host=TORCH, feature="to exchange gradients in codes")
        for key in [key for key, value in hooks.items() if value == hook]:
            del hooks[key]
