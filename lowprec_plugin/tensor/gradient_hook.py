"""The hook by which codes take the place of a gradient as soon as autograd has accumulated it.

Float gradients of two parameters so do not exist together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lowprec_plugin.compat.hooks import has_gradient_hook
from lowprec_plugin.tensor.dtensor import fixed_part, in_place_of, local_part
from lowprec_plugin.tensor.gradient import FixedPointGradient


def keeps_codes(param: Tensor) -> bool:
    """Whether the gradients of ``param`` are to be codes."""
    part = fixed_part(param)
    return part is not None and part.gradient_word_length is not None


def watch_gradient(param: Tensor) -> None:
    """See to it that the gradients of ``param`` become codes, if that is wanted of it.

    Copies of a module, and the shards that FSDP2 makes of one, come without the hook: an optimizer that takes a
    parameter asks for it.
    """
    if not keeps_codes(param) or has_gradient_hook(param, to_codes):
        return
    wanted = param.requires_grad
    param.requires_grad_(True)  # without, torch takes no hook; one that it has taken stays while frozen
    param.register_post_accumulate_grad_hook(to_codes)  # type: ignore[no-untyped-call]
    param.requires_grad_(wanted)


@torch.no_grad()
def to_codes(param: Tensor, name: str = "gradient") -> None:
    """Put codes in the place of the gradient of ``param``, if it is in floats and they are wanted.

    Args:
        name: of the random stream, see :meth:`FixedPointGradient.of`.
    """
    part, grad = fixed_part(param), param.grad
    if part is None or grad is None or part.gradient_word_length is None:
        return
    if grad.is_sparse or grad.requires_grad or isinstance(local_part(grad), FixedPointGradient):
        return  # a step refuses the first, the second has a graph (create_graph=True), autograd has added to the third
    if isinstance(param, DTensor) and isinstance(grad, DTensor) and grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    codes = FixedPointGradient.of(local_part(grad).detach(), part, part.gradient_word_length, name)
    param.grad = None
    param.grad = in_place_of(codes, param)
