"""What autograd knows: its nodes, the backward pass that is running, and of a tensor its version and what it views."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.compat.lookup import TORCH, look_up


def is_copy_of_leaf(node: Any) -> bool:
    """Whether ``node`` makes a tensor of another dtype from a leaf that wants a gradient, as autocast does a weight.

    It is recognised by an example that torch itself makes.
    """
    conversion, leaf = _examples()
    return isinstance(node, conversion) and isinstance(node.next_functions[0][0], leaf)


@cache
def _examples() -> tuple[Any, Any]:
    with torch.inference_mode(False), torch.enable_grad():
        node: Any = torch.ones(1, requires_grad=True).to(torch.bfloat16).grad_fn
    return type(node), type(node.next_functions[0][0])


def backward_pass() -> int | None:
    """The number of the backward pass that is running on this thread, each its own; ``None`` outside of any.

    Raises:
        ValueError: if this torch does not tell; so do the functions below.
    """
    feature = "to tell forward passes from what backward passes compute again"
    number = int(look_up(torch._C, "_current_graph_task_id", host=TORCH, feature=feature)())
    return None if number == -1 else number


def at_end_of_backward(function: Callable[[], None]) -> None:
    """Have the backward pass that is running on this thread call ``function`` when it is over."""
    feature = "to exchange gradients in codes"
    engine = look_up(torch.autograd.Variable, "_execution_engine", host=TORCH, feature=feature)
    engine.queue_callback(function)


def version_of(tensor: Tensor) -> int:
    """How often ``tensor``, or what shares its memory, has been changed in place."""
    feature = "to see whether what a backward pass needs has changed"
    return int(look_up(tensor, "_version", host=TORCH, feature=feature))


def viewed_by(tensor: Tensor) -> Tensor:
    """What ``tensor`` is a view of; ``tensor`` itself if it is none."""
    base = look_up(tensor, "_base", host=TORCH, feature="to see whether a tensor is a view of a parameter")
    return tensor if base is None else base
