"""How many products the sums of an operation have, forwards and backwards."""

from __future__ import annotations

import math

from torch import Tensor


def longest_sum(name: str, first: Tensor, second: Tensor, result: Tensor) -> int:
    """The terms of the longest sum in a product of two tensors or in the gradient of either.

    Args:
        name: of :data:`lowprec_plugin.activations.emulation.functions.PRODUCTS`.
        first, second: its factors; of a convolution and a linear layer the second is the weight.
        result: what it gave.
    """
    if name.startswith("conv"):
        # An output sums over a kernel and its channels, an input's error likewise; a weight's gradient over all places
        # that the kernel is put to, of all images: in a transpose those are the inputs.
        places = first if "transpose" in name else result
        dimensions = second.dim() - 2
        images = places.shape[0] if places.dim() == second.dim() else 1
        per_weight = images * math.prod(places.shape[-dimensions:])
        return int(max(math.prod(second.shape[1:]), second.numel() // second.shape[1], per_weight))
    if name == "linear":
        return int(max(second.shape[-1], second.shape[0], first.numel() // first.shape[-1]))
    # Both may be broadcast over the other's batches, and their gradients then sum over those.
    columns = second.shape[-1] if second.dim() > 1 else 1
    rows = first.shape[-2] if first.dim() > 1 else 1
    batches = max(math.prod(first.shape[:-2]), math.prod(second.shape[:-2]))
    return int(max(first.shape[-1], columns * batches, rows * batches))
