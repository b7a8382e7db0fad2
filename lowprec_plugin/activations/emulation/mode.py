"""Sees every function of torch that a network calls, and rounds what it gives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lowprec_plugin.activations.emulation.attention import attention, multi_head_attention
from lowprec_plugin.activations.emulation.exact import check_bits, exact_format, in_float64
from lowprec_plugin.activations.emulation.functions import (
    EXACT,
    FILLING,
    FILLING_FOURTH,
    FROM_OUTPUT,
    OTHER_PRODUCTS,
    PRODUCTS,
    REFUSED,
)
from lowprec_plugin.activations.emulation.sites import Site, format_of, mark, rounded, rounded_function
from lowprec_plugin.activations.emulation.terms import longest_sum
from lowprec_plugin.compat.autograd import viewed_by
from lowprec_plugin.compat.trees import tree_flatten, tree_map
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.tensor import FixedPointTensor

_AUGMENTED = frozenset(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"))


class EmulationMode(TorchFunctionMode):
    """While active, results of torch's functions are rounded.

    Args:
        next_site: the site of the operation of this name, which is the next of the running module.
        exact: sum products exactly.
    """

    def __init__(self, next_site: Callable[[str], Site], exact: bool) -> None:
        super().__init__()
        self._next_site = next_site
        self._exact = exact

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in REFUSED and self._next_site(name).rounds:
            raise ValueError(
                f"{name!r} computes in one piece what emulation would have to round in between: {REFUSED[name]}, or "
                "leave emulation out"
            )
        if name == "scaled_dot_product_attention":
            return attention(self.product, self._next_site, *args, **kwargs)[0]
        if name == "multi_head_attention_forward":
            with self:  # made of functions that are seen one by one
                return multi_head_attention(partial(attention, self.product, self._next_site), *args, **kwargs)
        if name in PRODUCTS or name in OTHER_PRODUCTS:
            if args and _in_place(func, name, args, kwargs):
                return self._added_in_place(func, name, args, kwargs)
            site = self._next_site(name)
            return self._results_rounded(self.product(func, name, args, kwargs, site), name, args, kwargs, site)
        if name in FROM_OUTPUT and len(args) < 3 and "dtype" not in kwargs and "out" not in kwargs:
            x, dim = args[0] if args else kwargs["input"], kwargs.get("dim", args[1] if len(args) > 1 else None)
            if _is_float(x) and x.dim() > 0 and (name != "softmax" or dim is not None):
                return rounded_function(x, name, dim, self._next_site(name))
        if name not in EXACT and args and _is_written(args[0]) and _in_place(func, name, args, kwargs):
            # On a copy: autograd may keep what the function writes, before it is rounded.
            value = func(args[0].clone(), *args[1:], **kwargs)
            return _written(args[0], rounded(value, self._next_site(name)))
        result = func(*args, **kwargs)
        if name == "__setitem__":
            if not isinstance(args[2], Tensor) or format_of(args[2]) != format_of(args[0]):
                mark(args[0], None)
            return result
        if name in EXACT:
            return _passed_on(result, name, args, kwargs)
        return self._results_rounded(result, name, args, kwargs)

    def product(self, func: Any, name: str, args: Any, kwargs: Any, site: Site) -> Any:
        """A sum of products of rounded numbers, not rounded itself yet: float32, or float64 if exact."""
        operands = PRODUCTS.get(name)
        if operands is None:
            if self._exact:
                raise ValueError(
                    f"accumulate='exact' does not know the sums of {name!r}: write it with matmul, or use "
                    "accumulate='float32'"
                )
            return func(*tree_map(self._entering, args), **kwargs)
        args, kwargs = list(args), dict(kwargs)
        for position, keyword in operands:
            if position < len(args):
                args[position] = self._entering(args[position])
            elif keyword in kwargs:
                kwargs[keyword] = self._entering(kwargs[keyword])
        if not self._exact:
            return func(*args, **kwargs)
        given = [args[p] if p < len(args) else kwargs.get(k) for p, k in operands]
        tensors = [x for x in given if isinstance(x, Tensor)]
        formats = [exact_format(x, site) for x in tensors]
        wide = {id(x): in_float64(x, site, index) for index, x in enumerate(tensors)}
        with torch.backends.cudnn.flags(enabled=False):  # whose algorithms may transform before they add
            result = func(
                *(wide.get(id(x), x) for x in args), **{keyword: wide.get(id(x), x) for keyword, x in kwargs.items()}
            )
        check_bits(formats, longest_sum(name, tensors[0], tensors[1], result), site)
        return result

    def _added_in_place(self, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
        """Products added to the first operand: a number of the network; or a statistic, which is left in float."""
        if not _is_written(args[0]):
            return func(*args, **kwargs)  # type: ignore[no-any-return]
        site, own = self._next_site(name), mark(args[0].clone(), format_of(args[0]))
        return _written(args[0], rounded(self.product(func, name, (own, *args[1:]), kwargs, site), site))

    def _entering(self, x: Any) -> Any:
        """A factor: numbers of no known format, a network's input, are rounded as they enter the arithmetic."""
        if not _is_float(x) or _is_parameter(x) or format_of(x) is not None:
            return x
        return rounded(x, self._next_site("input"))

    def _results_rounded(self, result: Any, name: str, args: Any, kwargs: Any, site: Site | None = None) -> Any:
        """``result`` rounded, unless it is an operand handed through; written to an ``out=`` if there is one.

        ``site``: of a sum of products, which has one already.
        """
        outs = tree_flatten(kwargs.get("out"))[0]

        def one(x: Any) -> Any:
            if not _is_float(x) or x.dim() == 0 or isinstance(x, FixedPointTensor) or any(x is arg for arg in args):
                return x
            y = rounded(x, site or self._next_site(name), torch.float32 if site is not None and self._exact else None)
            return _written(x, y) if any(x is out for out in outs) else y

        return tree_map(one, result)


def _is_parameter(x: Tensor) -> bool:
    """Whether ``x`` is a parameter, or a window on one: multi-head attention's weights are parts of one."""
    return isinstance(x, (FixedPointTensor, nn.Parameter)) or isinstance(viewed_by(x), nn.Parameter)


def _is_written(x: Any) -> bool:
    """Whether ``x``, if a function writes to it, is the network's; statistics are not, and are left in float."""
    return _is_float(x) and (format_of(x) is not None or (torch.is_grad_enabled() and x.requires_grad))


def _written(x: Tensor, value: Tensor) -> Tensor:
    return mark(x.copy_(value), format_of(value))


def _in_place(func: Any, name: str, args: Any, kwargs: Any) -> bool:
    """Whether a function changes its first operand."""
    if (name.endswith("_") and not name.endswith("__")) or name in _AUGMENTED:
        return True
    position = _place_of_inplace(func)
    return position is not None and bool(args[position] if position < len(args) else kwargs.get("inplace"))


@cache
def _place_of_inplace(func: Any) -> int | None:
    """The position of the argument called ``inplace``."""
    try:
        names = list(inspect.signature(func).parameters)
    except (TypeError, ValueError):  # not written in Python
        return None
    return names.index("inplace") if "inplace" in names else None


def _passed_on(result: Any, name: str, args: Any, kwargs: Any) -> Any:
    """``result`` of a function that makes no new numbers: of its operands' format, if they have one in common."""
    given = tree_flatten((args, kwargs))[0]
    found = {format_of(x) for x in given if _is_float(x)}
    format = found.pop() if len(found) == 1 else None
    if format is not None:
        filled = [*args[3:4], kwargs.get("value")] if name in FILLING_FOURTH else given
        whole = name in FILLING or name in FILLING_FOURTH  # of others whole numbers are dimensions and the like
        if not all(_holds(format, x) for x in filled if isinstance(x, (int, float) if whole else float)):
            format = None
        for x in tree_flatten(result)[0]:
            if _is_float(x) and not isinstance(x, FixedPointTensor):
                mark(x, format)
    return result


def _holds(format: FixedPointFormat, value: float) -> bool:
    """Whether a constant, such as one that is filled in, is a number of ``format`` wherever it lands."""
    if format.dynamic:
        return value == 0
    code = value * 2.0**-format.static_exponent
    return code.is_integer() and format.min_code <= code <= format.max_code


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()
