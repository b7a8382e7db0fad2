"""What several tests share: tensors that are hard to round, and all that a training run holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowprec_plugin import FixedPointFormat, FixedPointTensor
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.random_bits import key_of

SHAPES = [(), (1,), (300,), (5, 0), (3, 1), (7, 9), (40, 37), (3, 129), (2, 256), (3, 700), (1, 3000), (8, 3, 3, 3)]


def floats(shape: tuple[int, ...], seed: int = 0, squared: bool = False) -> Tensor:
    """Random floats over many magnitudes, with rows of extremes where there is room."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * torch.exp(3 * torch.randn(shape, generator=generator))
    if len(shape) == 2 and shape[0] >= 40:
        x[5] = 0
        x[6] = torch.finfo(torch.float32).max
        x[7] *= 1e-36
        x[8] = 127.5  # between the largest 8-bit code and the next binade
        x[9, :16] = 32767.5
        x[10] = -(2.0**-126)
        x[11] = 1e-45  # the smallest float of all
    # Beyond these bounds float32 cannot hold the square of a rounded root.
    return torch.where(x == 0, 0, x.abs().clamp(1e-30, 1e37)) if squared else x


def unusual(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As :func:`floats`, with infinities and NaNs; of float64 with bits that float32 does not have, and extremes."""
    x = floats(shape).to(dtype)
    if dtype == torch.float64:
        x = x * (1 + 2.0**-40)
    if x.numel() >= 300:
        strange = [torch.inf, -torch.inf, torch.nan, 1e300, -1e300, 1e-320] if dtype == torch.float64 else [torch.nan]
        x.view(-1)[17 : 17 + len(strange)] = torch.tensor(strange, dtype=dtype)
        x.view(-1)[256] = -torch.inf
    return x


def rounded_by_both(
    x: Tensor, format: FixedPointFormat, rounding: str, bits: Tensor | None, backend: str, device: str = "cpu"
) -> tuple[list[Tensor], list[Tensor]]:
    """What the reference's and a backend's ``ops.rounded`` give: the bits of the floats, and what saturated."""
    results = []
    for name, where in (("reference", "cpu"), (backend, device)):
        count = torch.zeros(1, dtype=torch.int64, device=where)
        given = None if bits is None else bits.to(where)
        with ops.use_backend(name):
            found = ops.rounded(x.to(where), format, rounding=rounding, key=key_of(3, 4), bits=given, saturated=count)
        results.append([torch.where(found.isnan(), torch.nan, found).view(torch.int32).cpu(), count.cpu()])
    return results[0], results[1]


def formats(word_lengths: tuple[int, ...] = tuple(range(2, 25)), block_size: int = 64) -> list[FixedPointFormat]:
    """Every word length: dynamic, squared, and two static ones."""
    found = []
    for bits in word_lengths:
        found += [FixedPointFormat(bits, None, block_size), FixedPointFormat(bits, None, block_size, True)]
        found += [FixedPointFormat(bits, bits - 3, block_size), FixedPointFormat(bits, bits + 4, block_size)]
    return found


def planes(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Every plane of the parameters, all of which must be fixed-point, and of their state; and its other tensors."""
    found = []
    for param in module.parameters():
        assert isinstance(param, FixedPointTensor)
        found += param.blocks.planes
        for value in optimizer.state[param].values():
            found += value.blocks.planes if isinstance(value, FixedPointTensor) else [value]
    return found
