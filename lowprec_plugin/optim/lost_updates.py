"""What rounding does to the updates of one step."""

from __future__ import annotations

import torch

from lowprec_plugin.memory import with_held
from lowprec_plugin.optim.generic import update_as_float
from lowprec_plugin.optim.step import FixedPointStep, steps_each_by_itself
from lowprec_plugin.optim.tally import Tally
from lowprec_plugin.ramp import Evidence
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.dtensor import stored_part


@torch.no_grad()
def evidence_of(optimizer: FixedPointStep) -> Evidence | None:
    """Measure the step that ``optimizer`` would make with the gradients that are there. Nothing is changed.

    Each update is computed in float32 by the optimizer's own formula, one parameter at a time. An optimizer whose step
    looks further than one parameter is measured in the step itself: the first call asks for it, and a call after that
    step gives what was found. But where it holds optimizers that do not (Lookahead around AdamW), these are measured.

    Returns:
        see :class:`~lowprec_plugin.ramp.Evidence`; ``None`` if no fixed-point parameter has a gradient, an update is
        not finite, or the step to be measured is still to come.
    """
    settings = optimizer.fixed_point
    adopted = (each for each in with_held([optimizer]) if isinstance(each, FixedPointStep))
    alone = [each for each in adopted if steps_each_by_itself(each.float_class)]
    if not alone:
        found = None if settings.tally is None else settings.tally.evidence()
        settings.tally = Tally(settings.rounding) if found is None else None
        return found
    tally = Tally(settings.rounding)
    for each in alone:
        _add(tally, each)
    return tally.evidence()


def _add(tally: Tally, optimizer: FixedPointStep) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is None or not isinstance(param, FixedPointTensor):
                continue
            part = stored_part(param)
            after = update_as_float(optimizer, group, param).reshape(part.codes.shape)
            tally.add(part.dequantize(torch.float32).reshape(part.codes.shape), after, part.blocks, part.format)
