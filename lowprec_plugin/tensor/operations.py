"""What operations of torch's do to a fixed-point tensor that have no rule of their own, by their schema.

* a *view* (``t``, ``select``, ``view``, ...) becomes a window on the same codes;
* an operation that *writes* to a fixed-point tensor works on its floats, which are then rounded back, once;
* all others read the floats for the time of the operation and give ordinary tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.compat.operators import is_composite, schema_of
from lowprec_plugin.compat.trees import tree_flatten, tree_leaves, tree_map_only
from lowprec_plugin.tensor.coded import Coded
from lowprec_plugin.tensor.collectives import collective
from lowprec_plugin.tensor.opening import current

Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
aten = torch.ops.aten
_NARROW = (torch.bfloat16, torch.float16)


@cache
def by_schema(func: Any) -> Rule:
    """The rule of ``func``, which has none of its own."""
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
        return view
    return read


def _floats(value: Any) -> Any:
    """One argument with floats in place of fixed-point tensors. Arguments nest in lists and tuples only."""
    if isinstance(value, Coded):
        return value._floats()[1]
    if isinstance(value, (list, tuple)):
        return type(value)([_floats(each) for each in value])
    return value


def read(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: Sequence[Any] = ()) -> Any:
    """An operation that gives ordinary tensors: it reads floats for as long as it takes."""
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


def view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A view: a window on the same codes."""
    source = args[0]
    if not isinstance(source, Coded):
        return read(func, args, kwargs)
    if func in (aten.view.dtype, aten.view_as_complex.default):  # no view of the codes shows other kinds of numbers
        with source._mode():
            return read(func, (source.dequantize(), *args[1:]), kwargs)
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
        return read(func, args, kwargs, written)
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
            read(func, one_args, one_kwargs, [target])
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
