"""Sees every function of torch that a network calls, and rounds what it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from lowprec_plugin.emulation.attention import multi_head_attention, scaled_dot_product_attention
from lowprec_plugin.emulation.exact import check_bits, exact_format, in_float64
from lowprec_plugin.emulation.functions import EXACT, FROM_OUTPUT, OTHER_PRODUCTS, PRODUCTS, REFUSED
from lowprec_plugin.emulation.sites import Site, format_of, mark, rounded, rounded_function
from lowprec_plugin.emulation.terms import longest_sum
from lowprec_plugin.tensor import FixedPointTensor


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
        if name in REFUSED:
            raise ValueError(
                f"{name!r} computes in one piece what emulation would have to round in between: {REFUSED[name]}, or "
                "leave emulation out"
            )
        if name == "scaled_dot_product_attention":
            return scaled_dot_product_attention(self.product, self._next_site, *args, **kwargs)
        if name == "multi_head_attention_forward":
            with self:  # made of functions that are seen one by one
                return multi_head_attention(*args, **kwargs)
        if name in PRODUCTS or name in OTHER_PRODUCTS:
            site = self._next_site(name)
            return self._all_rounded(self.product(func, name, args, kwargs, site), site)
        if name in FROM_OUTPUT and _is_float(args[0]) and "dtype" not in kwargs and "out" not in kwargs:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if name != "softmax" or dim is not None:
                return rounded_function(args[0], name, dim, self._next_site(name))
        result = func(*args, **kwargs)
        if name == "__setitem__":
            if not isinstance(args[2], Tensor) or format_of(args[2]) != format_of(args[0]):
                mark(args[0], None)
            return result
        if name in EXACT:
            return _passed_on(result, args, kwargs)
        return self._all_rounded(result, None, name, args)

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
        check_bits([exact_format(x, site) for x in tensors], longest_sum(name, args, kwargs), site)
        wide = {id(x): in_float64(x, site, index) for index, x in enumerate(tensors)}
        with torch.backends.cudnn.flags(enabled=False):  # whose algorithms may transform before they add
            return func(
                *(wide.get(id(x), x) for x in args), **{keyword: wide.get(id(x), x) for keyword, x in kwargs.items()}
            )

    def _entering(self, x: Any) -> Any:
        """A factor: numbers of no known format, a network's input, are rounded as they enter the arithmetic."""
        if not _is_float(x) or isinstance(x, (FixedPointTensor, nn.Parameter)) or format_of(x) is not None:
            return x
        return rounded(x, self._next_site("input"))

    def _all_rounded(self, result: Any, site: Site | None, name: str = "", args: Any = ()) -> Any:
        def one(x: Any) -> Any:
            if not _is_float(x) or x.dim() == 0 or isinstance(x, FixedPointTensor):
                return x
            if any(x is arg for arg in args):  # changed in place, or handed through
                return (
                    _rounded_in_place(x, self._next_site(name)) if name.endswith("_") or name.startswith("__i") else x
                )
            return rounded(x, site or self._next_site(name))

        return tree_map(one, result)


def _rounded_in_place(x: Tensor, site: Site) -> Tensor:
    """What an in-place operation has made of ``x``: rounded where it is the network's, left where it is a statistic."""
    if torch.is_grad_enabled() and not x.requires_grad:
        return mark(x, None)
    return mark(x.copy_(rounded(x.clone(), site)), site.activations.format)


def _passed_on(result: Any, args: Any, kwargs: Any) -> Any:
    """``result`` of a function that makes no new numbers: of its operands' format, if they have one in common."""
    found = {format_of(x) for x in tree_flatten((args, kwargs))[0] if _is_float(x)}
    format = found.pop() if len(found) == 1 else None
    if format is not None:
        for x in tree_flatten(result)[0]:
            if _is_float(x) and not isinstance(x, FixedPointTensor):
                mark(x, format)
    return result


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()
