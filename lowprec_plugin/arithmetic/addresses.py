"""Tensors as kernels read them: from an address on."""

from __future__ import annotations

import torch
from torch import Tensor


def readable(x: Tensor) -> Tensor:
    """``x`` as kernels read it, from an address on: a copy where it is not contiguous, aligned and as it looks.

    torch has tensors whose memory holds other numbers than they do (``is_neg()``, as imaginary parts of a conjugate),
    and ones between the bytes of a file.

    Raises:
        ValueError: for a tensor whose numbers lie in no memory of its own, as those of a class that computes them.
    """
    x = x.contiguous().resolve_neg()
    if not in_memory(x):
        raise ValueError(
            f"the numbers of this {type(x).__name__} lie in no memory of its own that could be read (it wraps others, "
            "or is under vmap or traced): give them as a plain torch.Tensor"
        )
    return x if x.data_ptr() % x.element_size() == 0 else x.clone()


def in_memory(x: Tensor) -> bool:
    """Whether the numbers of ``x`` lie where its address says, or nowhere because there are none to read."""
    if x.layout is not torch.strided:
        return False
    if x.is_meta or x.numel() == 0:
        return True
    try:
        return x.data_ptr() != 0
    except RuntimeError:  # under vmap, or while tracing
        return False
