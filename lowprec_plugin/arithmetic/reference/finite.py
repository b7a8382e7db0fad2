"""Whether numbers are finite, in torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def first_nonfinite(tensors: Sequence[Tensor]) -> int | None:
    """The index of the first tensor with a NaN or an infinity, or ``None``. Waits for the device once a tensor."""
    for index, tensor in enumerate(tensors):
        if not bool(torch.isfinite(tensor).all()):
            return index
    return None
