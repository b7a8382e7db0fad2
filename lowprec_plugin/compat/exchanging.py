"""Exchanging what two tensors are, while the objects stay the ones they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.compat.lookup import TORCH, look_up

_FEATURE = "to put codes in place of a parameter's floats"


def holder_of(tensor: Tensor, *, beside_its_node: bool = False) -> str:
    """What besides Python holds a leaf, and what to do about it, in words; empty if nothing does.

    To its holder it stays what it was when the object becomes another tensor. With ``beside_its_node`` the node of
    a graph that accumulates its gradient does not count, which a loss keeps that nobody will run backward again.
    """
    count = look_up(tensor, "_use_count", host=TORCH, feature=_FEATURE)
    if count() == 1:
        return ""
    if _is_watched(tensor, count()):
        if beside_its_node and count() == 2:
            return ""
        return (
            "an autograd graph that is still alive, or by what watches its gradient there: drop losses and outputs of "
            "earlier forward passes, or compute them under torch.no_grad(); wrap the module in "
            "DistributedDataParallel, and register hooks on AccumulateGrad nodes, afterwards"
        )
    return (
        "an autograd graph that is still alive, by a view of it or by TorchScript: drop losses and outputs of earlier "
        "forward passes, and views such as detach() gives; script or trace nothing that shares it"
    )


def _is_watched(tensor: Tensor, count: int) -> bool:
    """Whether there is a node that accumulates the gradient of ``tensor``, which ``count`` others have hold of."""
    if not tensor.requires_grad:
        return False
    node = torch.autograd.graph.get_gradient_edge(tensor).node  # made, and so one holder more, where there is none
    there = look_up(tensor, "_use_count", host=TORCH, feature=_FEATURE)() == count
    del node
    return bool(there)


def is_used_elsewhere(value: Tensor) -> bool:
    """Whether more than one Python object refers to ``value``, which is no leaf, or to its memory, as a view does."""
    feature = "to see what else holds an optimizer's state"
    uses = look_up(value, "_use_count", host=TORCH, feature=feature)()
    is_view = look_up(value, "_is_view", host=TORCH, feature=feature)()
    return bool(uses > 1 or is_view or _uses_of_memory(value) > _uses_of_memory(torch.empty(1)))


def _uses_of_memory(tensor: Tensor) -> int:
    storage, feature = tensor.untyped_storage(), "to see what else holds an optimizer's state"
    count = look_up(torch._C, "_storage_Use_Count", host=TORCH, feature=feature)
    return int(count(look_up(storage, "_cdata", host=TORCH, feature=feature)))


def exchange(one: Tensor, other: Tensor) -> None:
    """Exchange what two leaves are; what a user has hung on ``one``, hooks of its gradient too, stays on it.

    Its gradient stays as well, on the device and in the dtype that ``one`` has then.

    ``torch.utils.swap_tensors`` refuses objects with weak references, for these would see another tensor from then
    on, which is what is wanted of a parameter's.

    Raises:
        RuntimeError: if C++ code has a weak reference to one of them. Nothing is changed then.
    """
    grad, one.grad = one.grad, None
    if one.grad_dtype != one.dtype:
        other.grad_dtype = one.grad_dtype
    # torch keeps hooks with what is exchanged. The same dictionaries go back, so that a hook's handle still removes it.
    hooks = {name: getattr(one, name) for name in ("_backward_hooks", "_post_accumulate_grad_hooks")}
    for name in hooks:
        setattr(one, name, None)
    hung = {name: value for name, value in one.__dict__.items() if name not in other.__dict__}
    try:
        look_up(torch._C, "_swap_tensor_impl", host=TORCH, feature=_FEATURE)(one, other)
        slots = {name for each in (one, other) for kind in type(each).__mro__ for name in _slots(kind)}
        for name in ("__class__", "__dict__", *slots):
            kept: Any = getattr(one, name)
            setattr(one, name, getattr(other, name))
            setattr(other, name, kept)
        one.__dict__.update(hung)
    finally:
        one.grad = None if grad is None else grad.to(one.device, one.grad_dtype or grad.dtype)
        for name, held in hooks.items():
            setattr(one, name, held)


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
