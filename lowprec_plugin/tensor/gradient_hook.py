"""The hook by which something smaller takes the place of a gradient as soon as autograd has accumulated it.

It is codes, or numbers of another dtype. Float gradients of two parameters so do not exist together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lowprec_plugin.compat.hooks import add_gradient_hook, gradient_hooks, has_gradient_hook
from lowprec_plugin.tensor.dtensor import fixed_part, in_place_of, local_part
from lowprec_plugin.tensor.gradient import FixedPointGradient
from lowprec_plugin.tensor.tensor import FixedPointTensor


def narrows_gradient(param: Tensor) -> bool:
    """Whether the gradients of ``param`` are to be codes, or of another dtype than the parameter."""
    part = fixed_part(param)
    return part is not None and (isinstance(part.gradient_word_length, int) or part.gradient_dtype is not None)


class Asked:
    """What has been asked of any parameter in this process: who asks nothing does not look for it at each step.

    Attributes:
        release: to use its gradients in the backward pass.
    """

    release = False


def releases_gradient(param: Tensor) -> bool:
    """Whether the gradients of ``param`` are to be used for its update in the backward pass, and not kept."""
    part = fixed_part(param)
    return part is not None and part.gradient_word_length == "release"


def leaves_ddp(param: Tensor) -> bool:
    """Whether ``DistributedDataParallel`` has to leave ``param`` out, for it would hold a float gradient of it."""
    return narrows_gradient(param) or releases_gradient(param)


@dataclass(frozen=True)
class ExchangedFirst:
    """A hook that takes a gradient away, to hand over what all processes have made of it."""

    take: Callable[[Tensor], None]

    def __call__(self, param: Tensor) -> None:
        self.take(param)


def is_exchanged_first(param: Tensor) -> bool:
    """Whether the gradients of ``param`` go through an :class:`ExchangedFirst`."""
    return any(isinstance(hook, ExchangedFirst) for hook in gradient_hooks(param))


def use_gradient(param: Tensor, grad: Tensor) -> bool:
    """Have the optimizer that releases the gradients of ``param`` use ``grad``; whether there is one."""
    users: list[Any] = [hook for hook in gradient_hooks(param) if hasattr(hook, "use")]
    for user in users:
        user.use(param, grad)
    return bool(users)


def watch_gradient(param: Tensor) -> None:
    """See to it that the gradients of ``param`` become what is wanted of it.

    Copies of a module, and the shards that FSDP2 makes of one, come without the hook: an optimizer that takes a
    parameter asks for it.
    """
    part = fixed_part(param)
    if part is None or not narrows_gradient(param):
        return
    if part.gradient_dtype is not None:
        param.grad_dtype = None  # any: FSDP2 assigns what it has reduced, and the hook comes after
    if not has_gradient_hook(param, narrow_gradient):
        add_gradient_hook(param, narrow_gradient)


def keep_floats(param: Tensor) -> None:
    """Have the gradients of ``param``, if it is fixed-point, be floats of its own dtype again; also the one it has."""
    part = fixed_part(param)
    if part is not None:
        part.gradient_word_length = None
        if part.gradient_dtype is not None:
            part.gradient_dtype = None
            in_own_dtype(param)


def in_own_dtype(param: Tensor) -> None:
    """Give ``param`` the gradient that it has, and those to come, in its own dtype."""
    grad, param.grad = param.grad, None
    param.grad_dtype = param.dtype
    param.grad = None if grad is None else grad.to(param.dtype)


@torch.no_grad()
def narrow_gradient(param: Tensor, name: str = "gradient") -> None:
    """Put what is wanted in the place of the gradient of ``param``, if there is one and it is not that yet.

    Args:
        name: of the random stream of codes, see :meth:`FixedPointGradient.of`.
    """
    part, grad = fixed_part(param), param.grad
    if part is None or grad is None or not narrows_gradient(param):
        return
    held = local_part(grad)
    if grad.is_sparse or grad.requires_grad:
        return  # a step refuses the first, the second has a graph (create_graph=True)
    if isinstance(held, FixedPointGradient) or held.dtype == part.gradient_dtype:
        return  # autograd has added to it
    if isinstance(param, DTensor) and isinstance(grad, DTensor) and grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    narrow = narrowed(local_part(grad).detach(), part, name)
    param.grad = None
    param.grad = in_place_of(narrow, param)


def narrowed(grad: Tensor, part: FixedPointTensor, name: str = "gradient") -> Tensor:
    """What is kept of ``grad``, floats of the shape of ``part``: codes, or another dtype's numbers nearest to them."""
    if isinstance(part.gradient_word_length, int):
        return FixedPointGradient.of(grad, part, part.gradient_word_length, name)
    assert part.gradient_dtype is not None
    return grad.to(part.gradient_dtype)
