"""Gradients in codes: as soon as autograd has accumulated a parameter's gradient, codes take its place.

Float gradients of two parameters so do not exist together. See :mod:`lowprec_plugin.tensor.gradient` for what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lowprec_plugin.compat.hooks import has_gradient_hook
from lowprec_plugin.tensor.dtensor import fixed_part, in_place_of, local_part, stored_part
from lowprec_plugin.tensor.gradient import FixedPointGradient

#: Gradients of fewer elements stay floats: as codes they save less than handling them costs.
FEWEST = 4096


def keep_in_codes(param: Tensor, word_length: int | None) -> None:
    """Have the gradients of a fixed-point parameter kept in ``word_length`` bits from now on; ``None``: as floats.

    Those of fewer elements than ``FEWEST``, and of vectors, every element of which is a block, stay floats.
    """
    vector = param.dim() < 2 or param[0].numel() == 1
    stored_part(param).gradient_word_length = None if vector or param.numel() < FEWEST else word_length
    watch_gradient(param)


def watch_gradient(param: Tensor) -> None:
    """See to it that the gradients of ``param`` become codes, if that is wanted of it.

    A hook does that. Copies of a module and the shards that FSDP2 makes of one come without: an optimizer that takes a
    parameter asks for it.
    """
    part = fixed_part(param)
    if part is None or part.gradient_word_length is None or has_gradient_hook(param, to_codes):
        return
    wanted = param.requires_grad
    param.requires_grad_(True)  # without, torch takes no hook; one that it has taken stays while frozen
    param.register_post_accumulate_grad_hook(to_codes)  # type: ignore[no-untyped-call]
    param.requires_grad_(wanted)


@torch.no_grad()
def to_codes(param: Tensor) -> None:
    """Put codes in the place of the gradient of ``param``, if it is in floats and they are wanted."""
    part, grad = fixed_part(param), param.grad
    if part is None or grad is None or part.gradient_word_length is None:
        return
    if grad.is_sparse or isinstance(local_part(grad), FixedPointGradient):
        return  # the one is refused by the step; to the other autograd has added
    if isinstance(param, DTensor) and isinstance(grad, DTensor) and grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    codes = FixedPointGradient.of(local_part(grad).detach(), part, part.gradient_word_length)
    param.grad = None
    param.grad = in_place_of(codes, param)


@contextmanager
def as_floats_meanwhile(params: Iterable[Tensor]) -> Iterator[None]:
    """Within the context the gradients of ``params`` that are codes are floats, which are dropped at its end."""
    coded = [(param, param.grad) for param in params if param.grad is not None and fixed_part(param.grad) is not None]
    try:
        for param, grad in coded:
            param.grad = in_place_of(stored_part(grad).dequantize(), param)
        yield
    finally:
        for param, grad in coded:
            param.grad = grad
