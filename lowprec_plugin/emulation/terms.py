"""How many products the sums of an operation have, forwards and backwards."""

from __future__ import annotations

import math
from typing import Any


def longest_sum(name: str, args: Any, kwargs: Any) -> int:
    """The terms of the longest sum in a product of two tensors or in the gradient of either.

    Args:
        name: of :data:`lowprec_plugin.emulation.functions.PRODUCTS`.
        args, kwargs: the function's.
    """
    first, second = (args[position] if position < len(args) else _named(kwargs, position) for position in (0, 1))
    if name.startswith("conv"):
        # Each output sums over a kernel and its channels, an input's error likewise, a weight's gradient over all
        # outputs; which are at most the inputs times the stride's inverse, or in a transpose times the kernel.
        per_weight = first.numel() // first.shape[1] * (math.prod(second.shape[2:]) if "transpose" in name else 1)
        padded = _padding_factor(first, second)
        return int(max(math.prod(second.shape[1:]), second.numel() // second.shape[1], per_weight * padded))
    if name == "linear":
        return int(max(second.shape[-1], second.shape[0], first.numel() // first.shape[-1]))
    # Both may be broadcast over the other's batches, and their gradients then sum over those.
    columns = second.shape[-1] if second.dim() > 1 else 1
    rows = first.shape[-2] if first.dim() > 1 else 1
    batches = max(math.prod(first.shape[:-2]), math.prod(second.shape[:-2]))
    return int(max(first.shape[-1], columns * batches, rows * batches))


def _named(kwargs: Any, position: int) -> Any:
    return (
        kwargs["input"]
        if position == 0
        else next(kwargs[name] for name in ("weight", "other", "mat2") if name in kwargs)
    )


def _padding_factor(first: Any, second: Any) -> float:
    """Outputs per input at most: padding adds up to a kernel less one on either side, in any sane convolution."""
    return float(math.prod((n + 2 * (k - 1)) / n for n, k in zip(first.shape[2:], second.shape[2:], strict=True)))
