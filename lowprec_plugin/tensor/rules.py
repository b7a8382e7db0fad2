"""What torch's operations do to a :class:`~lowprec_plugin.tensor.tensor.FixedPointTensor`.

A few (``detach``, ``clone``, ``copy_``, ``embedding``, ...) have a rule of their own, in ``RULES``; of all others
:mod:`.operations` says what they do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.arithmetic.blocks import empty_blocks
from lowprec_plugin.compat.callers import distribute_tensor_calls, fsdp_calls
from lowprec_plugin.compat.operators import to_copy
from lowprec_plugin.tensor.casting import casts_share
from lowprec_plugin.tensor.coded import Coded
from lowprec_plugin.tensor.copying import copy_
from lowprec_plugin.tensor.interop import refuse_recording
from lowprec_plugin.tensor.opening import current
from lowprec_plugin.tensor.operations import Rule, aten, by_schema, read, view

RULES: dict[Any, Rule] = {}


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run ``func``, at least one of whose arguments is a :class:`Coded`."""
    refuse_recording()
    rule = RULES.get(func) or by_schema(func)
    return rule(func, args, kwargs)


def rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Register a rule of its own for ``functions``."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(functions, function))
        return function

    return register


@rule(aten.detach.default, aten.alias.default, aten.lift_fresh.default)
def _detach(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coded:
    source: Coded = args[0]
    return source._window(source._geometry)


@rule(aten.t.default)
def _t(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coded:
    source: Coded = args[0]
    return source._window((source.shape[::-1], source.stride()[::-1], source.storage_offset()))


@rule(aten.slice.Tensor)
def _slice(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    source = args[0]
    dim, start, end, step = list(args[1:]) + [0, None, None, 1][len(args) - 1 :]
    if not isinstance(source, Coded) or not _has_rows(source) or dim % source.dim() != 0 or step != 1:
        return view(func, args, kwargs)
    return _rows(source, *slice(start, end).indices(source.shape[0])[:2])


@rule(aten.split.Tensor, aten.split_with_sizes.default)
def _split(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    source, sizes = args[0], args[1]
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    if distribute_tensor_calls():  # to be scattered, by an operation that looks past this class
        raise ValueError(
            "a fixed-point tensor cannot be distributed: shard a module (parallelize_module) before optim.quantize_"
        )
    if not isinstance(source, Coded) or not _has_rows(source) or dim % source.dim() != 0:
        return view(func, args, kwargs)
    rows = source.shape[0]
    if isinstance(sizes, int):
        sizes = [min(sizes, rows - start) for start in range(0, max(rows, 1), max(sizes, 1))]
    ends = list(itertools.accumulate(sizes))
    return [_rows(source, end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _has_rows(source: Coded) -> bool:
    return source._geometry is None and source.dim() > 0


def _rows(source: Coded, start: int, end: int) -> Coded:
    """Some rows of ``source``: a window, and at the same time a tensor of its own, for blocks end with their rows."""
    end = max(start, end)
    with source._mode():
        planes = source._planes.map(lambda plane: plane[start:end])
        part = source._like(planes, geometry=None)
    part._shared, part._offset = source._shared, source._offset + start
    return part


@rule(aten.new_zeros.default)
def _new_zeros(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """An ordinary tensor, but for FSDP: it makes room for a shard so, and would hold it in float without a word."""
    source: Coded = args[0]
    size = tuple(args[1])
    if not fsdp_calls():
        return torch.empty((), dtype=source.dtype, device=source.device).new_zeros(size, **kwargs)
    if not _has_rows(source) or size[1:] != source.shape[1:]:
        raise ValueError(
            f"FSDP2 is to shard a parameter of shape {tuple(source.shape)} along another dimension than 0, but "
            "fixed-point blocks lie within rows: shard dimension 0, or leave it with keep_float"
        )
    shard = source._like(empty_blocks(size, source.format, source.device), geometry=None)
    shard.whole_rows, shard._shared.placed = source.whole_rows or source.shape[0], False
    return shard


@rule(aten.new_empty.default)
def _new_empty(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """An ordinary tensor; of its own shape on a device that is named, one like it.

    Asynchronous checkpoints make one so, and fill in its attributes then. In an optimizer's step, whose state would be
    held in the weights' format, it is an ordinary one.
    """
    source: Coded = args[0]
    size = tuple(args[1])
    of_a_copy = size == tuple(source.shape) and kwargs.get("device") is not None and kwargs.get("dtype") is None
    if of_a_copy and current() is None:
        device = torch.device(kwargs["device"])
        return source._like(empty_blocks(source._codes.shape, source.format, device))
    return torch.empty((), dtype=source.dtype, device=source.device).new_empty(size, **kwargs)


@rule(aten.clone.default)
def _clone(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    source: Coded = args[0]
    geometry = source._geometry
    if geometry is not None and not source.is_whole:
        return func(source._floats()[1], **kwargs)  # type: ignore[no-any-return]
    if (opening := current()) is None:
        return source._like(source.blocks.map(torch.clone), geometry=geometry)
    copied, floats = source._like(source._planes.map(torch.clone), geometry=geometry), source._open_floats()
    opening.copy(source, copied, None if floats is None else floats.clone())
    return copied


@rule(to_copy)
def _to_copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    source: Coded = args[0]
    dtype = kwargs.get("dtype") or source.dtype
    device = kwargs.get("device") or source.device
    moved_part = not source.is_whole and device != source.device
    if not dtype.is_floating_point or moved_part or current() is not None:
        return func(source._floats()[1], **kwargs)  # type: ignore[no-any-return]
    if casts_share.get() and device == source.device:
        return source._like(source.blocks, dtype=dtype)
    blocks = source.blocks.map(lambda plane: plane.to(device, copy=True))
    return source._like(blocks, dtype=dtype)


@rule(aten.empty_like.default, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default)
def _new_like(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """An ordinary tensor, made without reading the codes."""
    source: Coded = args[0]
    model = torch.empty((), dtype=source.dtype, device=source.device).expand(source.shape)
    return func(model, *args[1:], **(kwargs | {"memory_format": torch.contiguous_format}))  # type: ignore[no-any-return]


@rule(aten.copy_.default)
def _copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    target, source = args[0], args[1]
    if isinstance(target, Coded):
        return copy_(target, source)
    # Read exactly, so that the numbers are rounded once, to the target's dtype.
    return func(target, source._floats(torch.float32)[1], *args[2:], **kwargs)  # type: ignore[no-any-return]


@rule(aten.embedding.default)
def _embedding(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Only the rows that are looked up are read."""
    weight, indices = args[0], args[1]
    if not isinstance(weight, Coded) or weight._geometry is not None or weight._shared.open is not None:
        return read(func, args, kwargs)  # type: ignore[no-any-return]
    flat = indices.reshape(-1)
    rows = weight._like(weight.blocks.map(lambda plane: plane.index_select(0, flat)), geometry=None)
    return rows._floats()[1].reshape(*indices.shape, weight.shape[1])
