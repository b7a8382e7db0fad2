"""Nodes of autograd's graph, recognised by examples that torch itself makes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch


def is_copy_of_leaf(node: Any) -> bool:
    """Whether ``node`` makes a tensor of another dtype from a leaf that wants a gradient, as autocast does a weight."""
    conversion, leaf = _examples()
    return isinstance(node, conversion) and isinstance(node.next_functions[0][0], leaf)


@cache
def _examples() -> tuple[Any, Any]:
    with torch.inference_mode(False), torch.enable_grad():
        node: Any = torch.ones(1, requires_grad=True).to(torch.bfloat16).grad_fn
    return type(node), type(node.next_functions[0][0])
