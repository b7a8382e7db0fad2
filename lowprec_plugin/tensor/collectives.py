"""What the collectives of :mod:`torch.distributed` do to a :class:`~lowprec_plugin.tensor.tensor.FixedPointTensor`.

They return before the bytes have travelled, so floats made for the time of the call would be gone, or not yet there.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from lowprec_plugin.compat.nested_lists import look_first
from lowprec_plugin.compat.operators import schema_of
from lowprec_plugin.compat.trees import tree_leaves, tree_map_only
from lowprec_plugin.tensor import first_tensor
from lowprec_plugin.tensor.coded import Coded
from lowprec_plugin.tensor.opening import current

#: Those that only read their tensors, or write to others.
_READING = ("c10d::allgather_", "c10d::_allgather_base_", "c10d::allgather_into_tensor_coalesced_", "c10d::gather_")
#: Those that read the memory of tensors in lists of lists, which torch does not dispatch on. (What gathers into such
#: lists gathers elsewhere and copies, and a copy is dispatched.)
_READING_NESTED = ("scatter_", "reduce_scatter_")

#: As many as the text of a format has at most, and some more.
_FORMAT_BYTES = 32


def collective(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Broadcast codes; let others gather the floats; refuse what would round or lose the codes.

    Raises:
        ValueError: for any other collective, with what to use in its place.
    """
    name = schema_of(func).name
    if name == "c10d::broadcast_":
        return _broadcast(func, args, kwargs)
    targets = tree_leaves(args[0])
    if name in _READING and not any(isinstance(target, Coded) for target in targets):
        floats = tree_map_only(Coded, lambda tensor: tensor.dequantize(), (args, kwargs))
        result = func(*floats[0], **floats[1])
        _work(result).wait()  # the floats live until here
        return result
    raise _refusal(name)


def _refusal(name: str) -> ValueError:
    if (opening := current()) is not None:
        return ValueError(
            f"{opening.name} sends fixed-point parameters between processes in its own step "
            f"({name.removeprefix('c10d::').strip('_')}): use an optimizer that leaves that to DDP, FSDP2 or "
            "DeepSpeed, or keep_float for all that it updates"
        )
    return ValueError(
        f"{name.removeprefix('c10d::').strip('_')} of a fixed-point tensor: reduce floats (lowprec_plugin.comm, or "
        "dequantize()); shard a module (fully_shard, parallelize_module) before optim.quantize_"
    )


def _refuse_nested(func: Any, args: tuple[Any, ...]) -> None:
    if any(isinstance(leaf, Coded) for leaf in tree_leaves(args[1])):
        raise _refusal(schema_of(func).name)


if dist.is_available():
    first_tensor.waiting.append(partial(look_first, _READING_NESTED, _refuse_nested))


def _broadcast(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    for tensor in args[0]:
        if not isinstance(tensor, Coded):
            result = func([tensor], *args[1:], **kwargs)
            _work(result).wait()
            continue
        if not tensor.is_whole:
            raise ValueError("a window on a fixed-point tensor cannot be broadcast: broadcast the tensor")
        _check_format(func, tensor, args, kwargs)
        for plane in tensor.blocks.planes:
            result = func([plane.view(torch.uint8)], *args[1:], **kwargs)
            _work(result).wait()
    return args[0], _work(result)


def _check_format(func: Any, tensor: Coded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse the codes of another format, which a process would take for its own: each sees what the sender's is."""
    mine = str(tensor.format)
    told = torch.tensor(list(mine.ljust(_FORMAT_BYTES).encode()), dtype=torch.uint8, device=tensor.device)
    _work(func([told], *args[1:], **kwargs)).wait()
    theirs = bytes(told.tolist()).decode(errors="replace").strip()
    if theirs != mine:
        raise ValueError(
            f"broadcast to fixed-point tensor {tensor.label!r} in {mine} of one in {theirs}, whose codes are other "
            "numbers: quantize_ the module alike on every process"
        )


def _work(result: Any) -> Any:
    return result[-1] if isinstance(result, tuple) else result
