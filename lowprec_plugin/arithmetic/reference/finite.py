"""Whether numbers are finite, in torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowprec_plugin.formats import NOT_FINITE


def first_nonfinite(tensors: Sequence[Tensor]) -> int | None:
    """The index of the first tensor with a NaN or an infinity, or that is exponents (int8) of a gradient with one.

    ``None`` if all are finite. Waits for the device once a tensor.
    """
    for index, tensor in enumerate(tensors):
        bad = tensor == NOT_FINITE if tensor.dtype == torch.int8 else ~torch.isfinite(tensor)
        if bool(bad.any()):
            return index
    return None
