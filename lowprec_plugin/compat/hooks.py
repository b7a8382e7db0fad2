"""Hooks of a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lowprec_plugin.compat.lookup import TORCH, look_up


def gradient_hooks(tensor: Tensor) -> list[Any]:
    """What is called when a gradient of ``tensor`` has been accumulated.

    Raises:
        ValueError: if this torch keeps such hooks elsewhere.
    """
    return list((_hooks(tensor) or {}).values())


def has_gradient_hook(tensor: Tensor, hook: Callable[..., Any]) -> bool:
    """Whether ``hook`` is called when a gradient of ``tensor`` has been accumulated.

    Raises:
        ValueError: if this torch keeps such hooks elsewhere.
    """
    return hook in gradient_hooks(tensor)


def add_gradient_hook(tensor: Tensor, hook: Callable[[Tensor], None]) -> Any:
    """Have ``hook`` be called when a gradient of ``tensor``, a leaf, has been accumulated; a handle that removes it."""
    wanted = tensor.requires_grad
    tensor.requires_grad_(True)  # without, torch takes no hook; one that it has taken stays while frozen
    handle = tensor.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    tensor.requires_grad_(wanted)
    return handle


def remove_gradient_hook(tensor: Tensor, hook: Callable[..., Any]) -> None:
    """Have ``hook`` not be called any more when a gradient of ``tensor`` has been accumulated."""
    hooks = _hooks(tensor) or {}
    for key in [key for key, value in hooks.items() if value == hook]:
        del hooks[key]


def _hooks(tensor: Tensor) -> Any:
    feature = "to see what becomes of gradients"
    return look_up(tensor, "_post_accumulate_grad_hooks", host=TORCH, feature=feature)
