"""Which parameters are plain tensors of floats, whose numbers can be stored as codes; any other is left as it is.

A class of its own is what a parameter means to others: to an optimizer on manifolds, or to the operations that know
how an int8 weight is packed. Its numbers may lie nowhere in memory. So it is left alone, and listed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.dtensor import local_part

_PLAIN = (Tensor, nn.Parameter, FixedPointTensor)
#: Others are narrower than codes, complex, or no floats.
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def left_of(module: nn.Module) -> dict[str, str]:
    """The parameters of ``module`` that are left as they are, and why."""
    scripted: dict[int, str] = {}
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            where = f"TorchScript has compiled {path!r}" if path else "TorchScript has compiled the module"
            for param in part.parameters():
                scripted.setdefault(id(param), where)
    why = {name: scripted.get(id(param)) or why_left(param) for name, param in module.named_parameters()}
    return {name: reason for name, reason in why.items() if reason}


def why_left(param: Tensor) -> str:
    """Why ``param`` is left as it is; empty if it can be stored, or will be once it has numbers."""
    part = local_part(param)
    if isinstance(part, nn.UninitializedParameter):
        return ""
    if type(part) not in _PLAIN or type(param) not in (*_PLAIN, DTensor):
        return f"its class is {type(part if type(param) is DTensor else param).__name__}"
    if part.dtype not in _FLOATS:
        return f"its dtype is {str(part.dtype).removeprefix('torch.')}"
    if part.is_nested or part.layout != torch.strided:
        return "it is nested" if part.is_nested else f"its layout is {str(part.layout).removeprefix('torch.')}"
    return "its elements share memory" if _overlaps_itself(part) else ""


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements lie in one place, as those of an expanded tensor do."""
    if tensor.numel() == 0 or isinstance(tensor, FixedPointTensor):
        return False
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += (size - 1) * stride
    return False
