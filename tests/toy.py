"""A type of device that lowprec_plugin does not know, ``toy``: torch's operations, on CPU tensors behind its own.

Importing this makes it, and makes it the accelerator, for as long as the process lives: so in a process of its own.
What is written through a view whose elements do not lie side by side is lost.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

#: Types of numbers that the device does not have.
lacking: set[torch.dtype] = set()
_behind: dict[int, Tensor] = {}
_address = Tensor.data_ptr


def behind(x: Any) -> Any:
    """What the CPU is given for ``x``."""
    if isinstance(x, torch.device):
        return torch.device("cpu")
    if not (isinstance(x, Tensor) and x.device.type == "toy"):
        return x
    found = _behind[x.untyped_storage()._cdata]
    return found if found.dtype == x.dtype else found.view(x.dtype)


def before(x: Any) -> Any:
    """A tensor of the device, before ``x`` if that is a tensor."""
    if not isinstance(x, Tensor):
        return x
    if x.dtype in lacking:
        raise TypeError(f"the toy device has no {x.dtype}. Really")
    made = torch._C._acc.create_empty_tensor(x.shape, x.dtype)
    _behind[made.untyped_storage()._cdata] = x.contiguous()
    return made


def compute(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """What ``operator`` of the CPU computes; what it changes in place, or is given to write to, is what was given."""
    if operator.namespace != "aten":
        raise NotImplementedError(f"the toy device has no {operator}")
    declared = zip(args, operator._schema.arguments, strict=False)
    numbers = (int, float, bool)  # torch hands some on where it declares tensors
    args = tuple(torch.tensor(x) if str(each.type) == "Tensor" and type(x) in numbers else x for x, each in declared)
    leaves, tree = tree_flatten((args, kwargs))
    raw = [behind(leaf) for leaf in leaves]
    args, kwargs = tree_unflatten(raw, tree)

    def back(result: Any) -> Any:
        for leaf, given in zip(leaves, raw, strict=True):
            if given is result:
                if leaf.shape != given.shape:
                    leaf.data = before(given)
                return leaf
        return before(result)

    return tree_map(back, operator(*args, **kwargs))


def _copy(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    behind(to).copy_(behind(source))
    return to


_setup_privateuseone_for_python_backend("toy")
_every, _aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
_every.fallback(compute, "PrivateUse1")
for _made in (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default):
    _aten.impl(
        _made, lambda *args, made=_made, **given: compute(made, *args, **(given | {"pin_memory": False})), "PrivateUse1"
    )
_aten.impl("constant_pad_nd", lambda *args: compute(torch.ops.aten.constant_pad_nd.default, *args), "PrivateUse1")
_aten.impl("_copy_from", _copy, "PrivateUse1")
_aten.impl("record_stream", lambda tensor, stream: None, "PrivateUse1")
Tensor.data_ptr = lambda self: _address(behind(self))  # type: ignore[method-assign]
