"""The way back: a module's parameters, and its optimizers, as ordinary floats again, in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lowprec_plugin.compat.exchanging import holder_of
from lowprec_plugin.compat.hooks import remove_gradient_hook
from lowprec_plugin.compat.modules import hung_on
from lowprec_plugin.compat.optimizers import count_calls, counts_calls
from lowprec_plugin.compat.trees import tree_leaves, tree_map_only
from lowprec_plugin.formats import check_kind
from lowprec_plugin.memory import optimizers_of, with_held
from lowprec_plugin.optim.module_apply import move_plainly
from lowprec_plugin.optim.params import params_of
from lowprec_plugin.optim.quantize import exchange_all
from lowprec_plugin.tensor.coded import Shared, rows_in
from lowprec_plugin.tensor.dtensor import as_floats, fixed_part, in_place_of, stored_part
from lowprec_plugin.tensor.gradient_hook import in_own_dtype, narrow_gradient, narrows_gradient
from lowprec_plugin.tensor.tensor import OWN_ATTRIBUTES, FixedPointTensor


def to_float_(
    module: nn.Module, optimizers: Optimizer | Iterable[Optimizer] = (), *, dtype: torch.dtype | None = None
) -> nn.Module:
    """Store the parameters of ``module`` as ordinary floats: what :func:`quantize_` did, undone.

    Every parameter object stays the one it was, so tied parameters stay tied and optimizers keep their references; its
    gradient, the hooks registered on it and the user's attributes stay too. So do buffers, and tensors hung on modules
    (in lists and dicts too), that are fixed-point. Nothing of this package is left on the module: a pickle of it loads
    where the package is not installed. An adopted optimizer is of its own class again, one of
    :mod:`lowprec_plugin.optim` of ``torch.optim``'s (``Lion``, which torch does not have, of a float one of this
    package). It holds plain state, second moments as squares; what it holds beside its state is plain too, and its
    schedulers stay bound.

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
    held = _once(held | _hung_on(optimizers))
    floats = _Floats(dtype)
    become = {name: floats.of(tensor) for name, tensor in held.items()}
    states = [_plain_state(optimizer, floats) for optimizer in optimizers]
    _exchange(held, become)
    floats.leave_windows()
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
        found |= _hung(path, hung_on(part))
    return _once(found)


def _hung_on(optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """What ``optimizers`` hold in fixed-point beside their state, such as slow weights in a list."""
    found: dict[str, Tensor] = {}
    for place, optimizer in enumerate(optimizers):
        attributes = {name: value for name, value in vars(optimizer).items() if name != "state"}
        found |= _hung(f"{type(optimizer).__name__} {place}", attributes)
    return found


def _hung(path: str, attributes: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors among ``attributes`` of what is at ``path``, in lists and dicts too."""
    hung = {
        name: [each for each in tree_leaves(value) if isinstance(each, Tensor)] for name, value in attributes.items()
    }
    return {f"{path}.{name} {index}": each for name, some in hung.items() for index, each in enumerate(some)}


def _once(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of ``found`` that are fixed-point, each under its first name."""
    once = {id(tensor): (name, tensor) for name, tensor in reversed(found.items()) if fixed_part(tensor) is not None}
    return dict(reversed(once.values()))


def _check_updated(optimizers: list[Optimizer], held: set[int]) -> None:
    for optimizer in optimizers:
        for param in params_of(optimizer):
            part = fixed_part(param)
            if part is not None and id(param) not in held:
                raise ValueError(
                    f"this {type(optimizer).__name__} updates a fixed-point parameter {part.label!r} of shape "
                    f"{tuple(param.shape)} that is not in the module: call to_float_ on a module that holds all that "
                    "it updates"
                )


def _exchange(held: dict[str, Tensor], floats: dict[str, Tensor]) -> None:
    """Put ``floats`` into the objects of the same names."""
    narrow = [tensor for tensor in held.values() if narrows_gradient(tensor)]
    for name, tensor in held.items():
        if holder := holder_of(tensor, beside_its_node=True):
            raise ValueError(f"parameter {name!r} is held by {holder}")
    exchange_all(held, floats)
    for tensor in held.values():
        if type(tensor) in (Tensor, nn.Parameter):
            for own in OWN_ATTRIBUTES:
                tensor.__dict__.pop(own, None)
        if tensor.grad is not None and fixed_part(tensor.grad) is not None:
            tensor.grad = as_floats(tensor.grad).to(tensor.dtype)
    for tensor in narrow:
        remove_gradient_hook(tensor, narrow_gradient)
        in_own_dtype(tensor)


class _Floats:
    """Floats of fixed-point tensors; of windows on the same codes, such as a parameter and its ``.data``, the same."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self._whole: dict[Shared, Tensor] = {}

    def of(self, tensor: Tensor) -> Tensor:
        """What ``tensor`` is to become, a parameter if it is one."""
        part = stored_part(tensor)
        floats = in_place_of(self._part(part, part.dtype), tensor)
        return nn.Parameter(floats, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else floats

    def of_state(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """What ``value`` of an optimizer's state is to become, in ``dtype``: that of what it belongs to."""
        part = fixed_part(value)
        return value if part is None else in_place_of(self._part(part, dtype), value)

    def _part(self, part: FixedPointTensor, dtype: torch.dtype) -> Tensor:
        dtype, geometry = self.dtype or dtype, part._geometry
        if part._shared.rows != rows_in(part._codes):  # of some rows alone
            return part.dequantize(dtype)
        whole = self._whole.setdefault(part._shared, part._floats(dtype)[0])
        return whole if geometry is None else whole.as_strided(*geometry)

    def leave_windows(self) -> None:
        """Have other windows on these codes refuse to be written to."""
        for shared in self._whole:
            shared.left = "turned into floats"


def _plain_state(optimizer: Optimizer, floats: _Floats) -> dict[Any, Any]:
    """The optimizer's state with floats in place of codes, in the dtype of what they belong to, as torch has it."""

    def plain(param: Any, values: Any) -> Any:
        def one(value: Tensor) -> Tensor:
            return floats.of_state(value, param.dtype if isinstance(param, Tensor) else value.dtype)

        return tree_map_only(Tensor, one, dict(values) if isinstance(values, Mapping) else values)

    return {param: plain(param, values) for param, values in optimizer.state.items()}


def _become_plain(optimizer: Optimizer, state: dict[Any, Any]) -> None:
    for param, values in state.items():
        optimizer.state[param] = values
    float_class = getattr(optimizer, "float_class", None)
    if float_class is None:
        return
    if optimizer.releasing is not None:  # type: ignore[attr-defined]
        optimizer.releasing.leave()  # type: ignore[attr-defined]
        delattr(optimizer, "releasing")
    delattr(optimizer, "fixed_point")
    optimizer.__class__ = float_class
    Optimizer.__setstate__(optimizer, {})  # torch's way to hook the class's step for profiling
    patched = optimizer.__dict__.get("step")
    if patched is not None and counts_calls(patched):
        count_calls(optimizer, patched)  # a scheduler's wrapper holds the step of the class that there was
