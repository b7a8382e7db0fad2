"""The exponents of weights' blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowprec_plugin.formats import MIN_EXPONENT
from lowprec_plugin.tensor.dtensor import fixed_part

#: How many exponents int8 has, and the place of exponent 0 in a count of blocks.
EXPONENTS, ZERO = 256, 128


def block_exponents(module: nn.Module) -> Tensor:
    """How many blocks of fixed-point weights have each exponent, those that are all zero left out.

    A static format counts as one block per parameter.

    Returns:
        int64 of 256 elements, on the CPU: of exponents -128 to 127.
    """
    found: dict[torch.device, Tensor] = {}
    for param in module.parameters():
        part = fixed_part(param)
        if part is None or part.numel() == 0:
            continue
        exponents = part.exponents
        if exponents is None:
            exponents = torch.tensor([part.format.static_exponent], dtype=torch.int8, device=part.device)
        count = torch.bincount(exponents.flatten().int() + ZERO, minlength=EXPONENTS)
        found[count.device] = found.get(count.device, 0) + count
    counts = torch.zeros(EXPONENTS, dtype=torch.int64)
    for count in found.values():
        counts += count.cpu()
    counts[MIN_EXPONENT + ZERO] = 0  # a block of zeros has the smallest exponent there is
    return counts


def exponent_spread(counts: Tensor) -> int | None:
    """The largest exponent that occurs in ``counts`` less the smallest; ``None`` where none does."""
    found = counts.nonzero().flatten()
    return int(found[-1] - found[0]) if len(found) else None
