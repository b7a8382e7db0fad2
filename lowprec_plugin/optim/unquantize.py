"""The way back: a module's parameters, and its optimizers, as ordinary floats again, in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lowprec_plugin.compat.exchanging import holder_of
from lowprec_plugin.compat.modules import PARAMETER_MARK, hung_on
from lowprec_plugin.compat.optimizers import count_calls, counts_calls
from lowprec_plugin.compat.trees import tree_leaves, tree_map_only
from lowprec_plugin.formats import check_kind
from lowprec_plugin.memory import optimizers_of, with_held
from lowprec_plugin.optim.module_apply import move_plainly
from lowprec_plugin.optim.quantize import exchange_all
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.coded import Coded
from lowprec_plugin.tensor.dtensor import as_floats, fixed_part, in_place_of, local_part

#: What a fixed-point tensor holds of itself, and torch of a parameter that is one, beside what a user has hung on it.
_ITS_OWN = (PARAMETER_MARK, *Coded.__annotations__)


def to_float_(
    module: nn.Module, optimizers: Optimizer | Iterable[Optimizer] = (), *, dtype: torch.dtype | None = None
) -> nn.Module:
    """Store the parameters of ``module`` as ordinary floats: what :func:`quantize_` did, undone.

    Every parameter object stays the one it was, so tied parameters stay tied and optimizers keep their references; its
    gradient, the hooks registered on it and the user's attributes stay too. So do buffers, and tensors hung on modules
    (in lists and dicts too), that are fixed-point. Nothing of this package is left on the module: a pickle of it loads
    where the package is not installed. An adopted optimizer is of its own class again, one of
    :mod:`lowprec_plugin.optim` of ``torch.optim``'s (``Lion``, which torch has not, of a float one of this package). It
    holds plain state, second moments as squares; its schedulers stay bound.

    Args:
        module: changed in place. It takes 4 bytes per parameter from here on, in float32.
        optimizers: one or several that update the module, changed in place. Give all that go on: one that is left out
            keeps its state in fixed-point.
        dtype: of what was fixed-point; ``None``: the one that operations saw, so that the module computes what it did.
            float32 holds every stored number exactly, bfloat16 does not.

    Returns:
        ``module``.

    Raises:
        ValueError: for an argument of another kind; an optimizer that updates fixed-point parameters of another module
            too; a parameter that an autograd graph or DistributedDataParallel holds; or a module that
            FSDP2 has sharded. Nothing is changed then (but torch may refuse to run that graph backward).
    """
    check_kind(module, nn.Module, "module")
    optimizers = with_held(optimizers_of(optimizers, "optimizers"))
    if dtype is not None:
        check_kind(dtype, torch.dtype, "dtype")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype={dtype} is not floating point: leave it None, or torch.float32")
    _check_wrappers(module)
    held = _fixed_tensors(module)
    _check_updated(optimizers, {id(tensor) for tensor in held.values()})
    floats = {name: _as_float(tensor, dtype) for name, tensor in held.items()}
    states = [_plain_state(optimizer, dtype) for optimizer in optimizers]
    _exchange(held, floats)
    move_plainly(module)
    for optimizer, state in zip(optimizers, states, strict=True):
        _become_plain(optimizer, state)
    return module


def _check_wrappers(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, DistributedDataParallel):
            raise ValueError(
                "DistributedDataParallel holds the tensors that its parameters are: take the module out (ddp.module), "
                "drop the wrapper, and call to_float_ on the module"
            )
        if isinstance(part, FSDPModule):
            raise ValueError(
                "FSDP2 holds the tensors that its shards are: gather floats with optim.float_state_dict of the "
                "module's state dict (torch.distributed.checkpoint.state_dict.get_model_state_dict), and load them "
                "into a module that is not sharded"
            )


def _fixed_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers, and what else is hung on ``module`` and its parts that is fixed-point, once each."""
    found: dict[str, Tensor] = dict(module.named_parameters())
    found.update(module.named_buffers())
    for path, part in module.named_modules():
        for name, value in hung_on(part).items():
            hung = (each for each in tree_leaves(value) if isinstance(each, Tensor))
            found.update({f"{path}.{name} {index}": each for index, each in enumerate(hung)})
    once = {id(tensor): (name, tensor) for name, tensor in reversed(found.items()) if fixed_part(tensor) is not None}
    return dict(reversed(once.values()))


def _check_updated(optimizers: list[Optimizer], held: set[int]) -> None:
    for optimizer in optimizers:
        for param in (param for group in optimizer.param_groups for param in group["params"]):
            part = fixed_part(param)
            if part is not None and id(param) not in held:
                raise ValueError(
                    f"this {type(optimizer).__name__} updates a fixed-point parameter {part.label!r} of shape "
                    f"{tuple(param.shape)} that is not in the module: call to_float_ on a module that holds all that "
                    "it updates"
                )


def _exchange(held: dict[str, Tensor], floats: dict[str, Tensor]) -> None:
    """Put ``floats`` into the objects of the same names."""
    for name, tensor in held.items():
        if holder := holder_of(tensor, beside_its_node=True):
            raise ValueError(f"parameter {name!r} is held by {holder}")
    exchange_all(held, floats)
    for tensor in held.values():
        if type(tensor) in (Tensor, nn.Parameter):
            for own in _ITS_OWN:
                tensor.__dict__.pop(own, None)
        if tensor.grad is not None and fixed_part(tensor.grad) is not None:
            tensor.grad = as_floats(tensor.grad).to(tensor.dtype)


def _as_float(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    part = local_part(tensor)
    assert isinstance(part, FixedPointTensor)
    floats = in_place_of(part.dequantize(dtype), tensor)
    return nn.Parameter(floats, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else floats


def _plain_state(optimizer: Optimizer, dtype: torch.dtype | None) -> dict[Any, dict[str, Any]]:
    """The optimizer's state with floats in place of codes, in the dtype of what they belong to, as torch has it."""

    def plain(param: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        def one(value: Tensor) -> Tensor:
            return value if fixed_part(value) is None else as_floats(value).to(dtype or param.dtype)

        return tree_map_only(Tensor, one, dict(values))  # type: ignore[no-any-return]

    return {param: plain(param, values) for param, values in optimizer.state.items()}


def _become_plain(optimizer: Optimizer, state: dict[Any, dict[str, Any]]) -> None:
    for param, values in state.items():
        optimizer.state[param] = values
    float_class = getattr(optimizer, "float_class", None)
    if float_class is None:
        return
    delattr(optimizer, "fixed_point")
    optimizer.__class__ = float_class
    Optimizer.__setstate__(optimizer, {})  # torch's way to hook the class's step for profiling
    patched = optimizer.__dict__.get("step")
    if patched is not None and counts_calls(patched):
        count_calls(optimizer, patched)  # a scheduler's wrapper holds the step of the class that there was
