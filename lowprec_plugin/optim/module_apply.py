"""What a module with fixed-point parameters does differently: moving to another device or dtype, and TorchScript.

``torch.nn.Module`` would exchange each parameter's tensor for a moved one, which it cannot while an autograd graph
holds the parameter: a module could not be moved, even to where it is, after a forward pass whose outputs live on. So
a module that holds fixed-point parameters gets an ``_apply`` of its own, which moves the codes inside each parameter.

TorchScript would look for memory that the parameters do not have, and crash the process when it is saved: the hook
that ``torch.jit.script`` looks for on a module refuses it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lowprec_plugin.compat.modules import (
    apply_by,
    apply_of_class,
    apply_plainly,
    find_weights_again,
    hidden,
    own_parameters,
)
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.interop import recorded


def move_in_place(module: nn.Module) -> None:
    """Give ``module`` and its parts the ``_apply`` that leaves fixed-point parameters the tensors they are.

    And what refuses ``torch.jit.script``.
    """
    for part in module.modules():
        if _fixed(part):
            apply_by(part, _apply)
            part.__dict__["__prepare_scriptable__"] = _refuse_script


def move_plainly(module: nn.Module) -> None:
    """Undo :func:`move_in_place`: ``module`` and its parts have what their classes say again."""
    for part in module.modules():
        if apply_plainly(part, _apply):
            part.__dict__.pop("__prepare_scriptable__", None)  # what earlier versions pickled has none


def _refuse_script() -> nn.Module:
    raise ValueError(recorded("torch.jit.script"))


def _fixed(module: nn.Module) -> dict[str, FixedPointTensor]:
    return {name: param for name, param in own_parameters(module).items() if isinstance(param, FixedPointTensor)}


def _apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    fixed = _fixed(module)
    with hidden(module, fixed):
        apply_of_class(module, fn, recurse)
    for param in fixed.values():
        _move(param, fn)
    if isinstance(module, nn.RNNBase):
        find_weights_again(module)
    return module


@torch.no_grad()
def _move(param: FixedPointTensor, fn: Callable[[Tensor], Tensor]) -> None:
    grad, param.grad = param.grad, None
    try:
        moved = fn(param)
        if moved is not param:
            # What makes tensors without values (Module.to_empty) makes floats, of which any may be a NaN.
            param.data = moved if isinstance(moved, FixedPointTensor) else torch.nan_to_num(moved, 0, 0, 0)
    finally:
        if grad is not None:
            param.grad = grad if grad.device == param.device and grad.dtype == param.dtype else fn(grad)
