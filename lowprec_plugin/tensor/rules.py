"""What torch's operations do to a :class:`~lowprec_plugin.tensor.tensor.FixedPointTensor`.

Four rules cover all operations, chosen by the operation's own schema:

* a few (``detach``, ``clone``, ``copy_``, ``embedding``, ...) have a rule of their own in ``RULES``;
* a *view* (``t``, ``select``, ``view``, ...) becomes a window on the same codes;
* an operation that *writes* to a fixed-point tensor works on its floats, which are then rounded back, once;
* all others read the floats for the time of the operation and give ordinary tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.arithmetic.blocks import empty_blocks
from lowprec_plugin.compat.callers import distribute_tensor_calls, fsdp_calls
from lowprec_plugin.compat.operators import is_composite, schema_of, to_copy
from lowprec_plugin.compat.trees import tree_flatten, tree_leaves, tree_map_only
from lowprec_plugin.tensor.casting import casts_share
from lowprec_plugin.tensor.coded import Coded
from lowprec_plugin.tensor.collectives import collective
from lowprec_plugin.tensor.copying import copy_
from lowprec_plugin.tensor.interop import refuse_recording
from lowprec_plugin.tensor.opening import current

aten = torch.ops.aten
Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
RULES: dict[Any, Rule] = {}
_NARROW = (torch.bfloat16, torch.float16)


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run ``func``, at least one of whose arguments is a :class:`Coded`."""
    refuse_recording()
    rule = RULES.get(func) or _rule_of(func)
    return rule(func, args, kwargs)


@cache
def _rule_of(func: Any) -> Rule:
    schema = schema_of(func)
    if schema.name.startswith("c10d::"):
        return collective
    if is_composite(func):
        return _decompose
    if schema.is_mutable:
        written = [index for index, argument in enumerate(schema.arguments) if _is_written(argument)]
        return _write_one if written == [0] and str(schema.arguments[0].type) == "Tensor" else _write
    first = schema.arguments[0].alias_info if schema.arguments else None
    if first is not None and any(result.alias_info is not None for result in schema.returns):
        return _view
    return _read


def _floats(value: Any) -> Any:
    """One argument with floats in place of fixed-point tensors. Arguments nest in lists and tuples only."""
    if isinstance(value, Coded):
        return value._floats()[1]
    if isinstance(value, (list, tuple)):
        return type(value)([_floats(each) for each in value])
    return value


def _read(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: Sequence[Any] = ()) -> Any:
    # An optimizer computes in float32 at least, whatever the dtype of its parameters. But where it writes to narrower
    # floats (``written``), as decay to a gradient, it would write to a widened copy of them.
    if current() is not None and not any(leaf.dtype in _NARROW for leaf in tree_leaves(written) if leaf is not None):
        args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
    return func(*_floats(args), **{name: _floats(value) for name, value in kwargs.items()})


def _widened(tensor: Tensor) -> Tensor:
    if tensor.dtype not in _NARROW:
        return tensor
    return tensor._floats(torch.float32)[1] if isinstance(tensor, Coded) else tensor.float()


def _decompose(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A composite operation, which comes here whole under inference mode only, by its parts."""
    return func.decompose(*args, **kwargs)


def _view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    source = args[0]
    if not isinstance(source, Coded):
        return _read(func, args, kwargs)
    if func in (aten.view.dtype, aten.view_as_complex.default):  # no view of the codes shows other kinds of numbers
        with source._mode():
            return _read(func, (source.dequantize(), *args[1:]), kwargs)
    # The view's geometry is found on a tensor without data; the codes stay where they are.
    window = torch.empty(source._codes.numel(), dtype=source.dtype, device="meta")
    result = func(window.as_strided(source.shape, source.stride(), source.storage_offset()), *args[1:], **kwargs)
    return tree_map_only(Tensor, lambda one: source._window((one.shape, one.stride(), one.storage_offset())), result)


def _write_one(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation that writes to its first argument alone, as most do: :func:`_write` without its search."""
    target = args[0]
    if not isinstance(target, Coded) or any(isinstance(arg, (list, tuple)) for arg in args):
        return _write(func, args, kwargs)
    if (opening := current()) is not None:
        opening.write([target])
    floats, window = target._floats(torch.float32)
    before = window.shape, window.stride()

    def operand(value: Any) -> Any:
        return window if value is target else _in_float32(value) if isinstance(value, Tensor) else value

    func(window, *map(operand, args[1:]), **{name: operand(value) for name, value in kwargs.items()})
    _check_geometry(func, target, before, window)
    target._store(floats, target.rounding)
    return target


def _check_geometry(func: Any, target: Coded, before: tuple[Any, Any], window: Tensor) -> None:
    if (window.shape, window.stride()) != before:
        raise ValueError(
            f"{schema_of(func).name.removeprefix('aten::')} would change the shape of fixed-point tensor "
            f"{target.label!r}, {tuple(target.shape)}, in place, which its codes cannot follow: use what returns "
            "a new tensor, and assign that to .data"
        )


def _write(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    schema = schema_of(func)
    if schema.name.startswith("aten::_foreach_"):
        return _write_each(func, args, kwargs)
    named = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    written = [named.get(argument.name) for argument in schema.arguments if _is_written(argument)]
    targets = [leaf for leaf in tree_flatten(written)[0] if isinstance(leaf, Coded)]
    if not targets:  # batch norm writes to its statistics, and reads its weights in their own dtype
        return _read(func, args, kwargs, written)
    if (opening := current()) is not None:
        opening.write(targets)
    replaced: dict[int, tuple[Coded, Tensor, Tensor]] = {}
    for target in targets:
        replaced.setdefault(id(target), (target, *target._floats(torch.float32)))
    left = {id(leaf) for leaf in tree_flatten(written)[0]}

    def operand(tensor: Tensor) -> Tensor:
        if id(tensor) in replaced:
            return replaced[id(tensor)][2]
        return tensor if id(tensor) in left else _in_float32(tensor)

    before = [(window.shape, window.stride()) for *_, window in replaced.values()]
    result = func(*tree_map_only(Tensor, operand, args), **tree_map_only(Tensor, operand, kwargs))
    for (target, _, window), geometry in zip(replaced.values(), before, strict=True):
        _check_geometry(func, target, geometry, window)
    for target, floats, _ in replaced.values():
        target._store(floats, target.rounding)
    originals = {id(window): target for target, _, window in replaced.values()}
    return tree_map_only(Tensor, lambda tensor: originals.get(id(tensor), tensor), result)


def _write_each(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A ``_foreach`` operation, one tensor at a time: floats for a whole list of parameters only if it stays open."""
    length = len(args[0])
    if (opening := current()) is not None:
        opening.write([target for target in args[0] if isinstance(target, Coded)])

    def pick(tree: Any, index: int) -> Any:
        return [tree[index]] if isinstance(tree, (list, tuple)) and len(tree) == length else tree

    for index in range(length):
        one_args = tuple(pick(argument, index) for argument in args)
        one_kwargs = {name: pick(argument, index) for name, argument in kwargs.items()}
        target = one_args[0][0]
        if not isinstance(target, Coded):
            _read(func, one_args, one_kwargs, [target])
            continue
        floats, window = target._floats(torch.float32)
        others, one_kwargs = tree_map_only(Tensor, _in_float32, (one_args[1:], one_kwargs))
        func([window], *others, **one_kwargs)
        target._store(floats, target.rounding)


def _in_float32(tensor: Tensor) -> Tensor:
    """An operand of an operation that writes: narrower ones would be rounded before that, and some not taken at all."""
    if isinstance(tensor, Coded):
        return tensor._floats(torch.float32)[1]
    return tensor.float() if tensor.dtype in (*_NARROW, torch.float64) else tensor


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


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
        return _view(func, args, kwargs)
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
        return _view(func, args, kwargs)
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
        return _read(func, args, kwargs)  # type: ignore[no-any-return]
    flat = indices.reshape(-1)
    rows = weight._like(weight.blocks.map(lambda plane: plane.index_select(0, flat)), geometry=None)
    return rows._floats()[1].reshape(*indices.shape, weight.shape[1])
