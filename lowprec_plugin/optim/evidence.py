"""What rounding does to the updates of one step, measured before it is made."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowprec_plugin import reference
from lowprec_plugin.optim.generic import update_as_float
from lowprec_plugin.optim.step import FixedPointStep
from lowprec_plugin.ramp import Evidence
from lowprec_plugin.sharding import placed_part
from lowprec_plugin.tensor import FixedPointTensor


@torch.no_grad()
def evidence_of(optimizer: FixedPointStep) -> Evidence | None:
    """Measure the step that ``optimizer`` would make with the gradients that are there. Nothing is changed.

    Each update is computed in float32 by the optimizer's own formula, one parameter at a time, and held against the
    size of a code where it lands. The rounding error is the one that is expected: of an update ``k + f`` codes,
    stochastic rounding errs by ``f (1 - f)`` squared codes in the mean, rounding to nearest by the square of the
    distance.

    Returns:
        see :class:`~lowprec_plugin.ramp.Evidence`; ``None`` if no fixed-point parameter has a gradient, or an update is
        not finite.
    """
    measured = False
    moved = lost = updates = errors = 0.0
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is None or not isinstance(param, FixedPointTensor):
                continue
            measured, part = True, placed_part(param)
            before = part.dequantize(torch.float32)
            update = (update_as_float(optimizer, group, param) - before).double()
            code = code_size(part)
            rest = torch.remainder(update / code, 1.0)
            if optimizer.fixed_point.rounding == "stochastic":
                error = rest * (1 - rest)
            else:
                error = torch.minimum(rest, 1 - rest).square()
            moved += float((update != 0).sum())
            lost += float(((update != 0) & (update.abs() < code / 2)).sum())
            updates += float(update.square().sum())
            errors += float((error * code.square()).sum())
    if not measured or not math.isfinite(updates):
        return None
    return Evidence(lost / max(moved, 1.0), (errors / updates) ** 0.5 if updates > 0 else 0.0)


def code_size(tensor: FixedPointTensor) -> Tensor:
    """What one code stands for at each element, in float64, of the tensor's shape."""
    return reference.code_size(tensor.blocks, tensor.format).reshape(tensor.shape)
