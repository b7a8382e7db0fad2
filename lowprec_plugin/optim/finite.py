"""Whether gradients, and what a step makes of them, are finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.arithmetic import ops
from lowprec_plugin.optim.adopted import Adopted
from lowprec_plugin.optim.naming import described
from lowprec_plugin.optim.params import params_of
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.dtensor import fixed_part, local_part, on_any_rank
from lowprec_plugin.tensor.gradient import FixedPointGradient


class NonFiniteGradientError(ValueError):
    """A gradient is NaN or infinite: the step was refused and nothing was written."""


def gradients_are_finite(optimizer: Adopted) -> bool:
    """Look at every gradient, before anything is written; of sharded parameters at those of all ranks.

    Raises:
        NonFiniteGradientError: if one is not and ``nonfinite="raise"``.
        ValueError: for a sparse gradient of a fixed-point parameter.
    """
    every: list[Any] = params_of(optimizer)
    bad = first_nonfinite([param for param in every if param.grad is not None])
    found = None if bad is None else described(bad)
    if not on_any_rank(found is not None, every):
        return True
    if optimizer.fixed_point.nonfinite == "skip":
        return False
    said = f"the gradient of {found or 'a parameter, in the shard of another rank,'} holds a NaN or an infinity"
    if optimizer.releasing is not None and optimizer.releasing.done:
        raise NonFiniteGradientError(f"{said}, and the rest of the step was refused. {optimizer.releasing.said()}")
    raise NonFiniteGradientError(
        f"{said}: the step was refused and nothing was written. Lower the learning rate or clip gradients; "
        'nonfinite="skip" skips such steps'
    )


def first_nonfinite(params: Sequence[Any]) -> Tensor | None:
    """One of ``params``, which have gradients, whose gradient on this rank is NaN or infinite; ``None``: none is.

    Raises:
        ValueError: for a sparse gradient of a fixed-point parameter.
    """
    for param in params:
        if param.grad.is_sparse and fixed_part(param) is not None:
            raise ValueError(
                f"the gradient of {described(param)} is sparse, which fixed-point updates do not support: "
                "use sparse=False in its embedding, or keep_float for the parameter"
            )
    by_device: dict[torch.device, list[Any]] = {}
    for param in params:
        if not param.grad.is_sparse:
            by_device.setdefault(local_part(param).device, []).append(param)
    bad = None
    for some in by_device.values():
        index = ops.first_nonfinite([gradient_of(param) for param in some])
        bad = some[index] if bad is None and index is not None else bad
    return bad


def gradient_of(param: Tensor) -> Tensor | ops.StoredGradient:
    """The gradient of what this rank holds of ``param``; of a fixed-point one as updates take it.

    Floats have the parameter's shape, which its codes may have in another form.
    """
    assert param.grad is not None
    grad = local_part(param.grad)
    if grad.dtype in ops.GRADIENT_DTYPES and not isinstance(grad, FixedPointTensor):
        return grad
    part = fixed_part(param)
    if part is None:
        return grad
    if isinstance(grad, FixedPointGradient) and grad.fits(part):
        return grad.stored
    # Somebody assigned a parameter's copy, or changed the parameter, if it is fixed-point.
    return grad.dequantize(torch.float32) if isinstance(grad, FixedPointTensor) else grad.float()


def came_to_nan(group: dict[str, Any], param: Tensor | None, said: str) -> NonFiniteGradientError:
    """The error of a step that came to NaN; ``said``: what was not written."""
    what = "a tensor of the optimizer's" if param is None else described(param)
    return NonFiniteGradientError(
        f"the update of {what} came to NaN although its gradient is finite (is the learning rate, "
        f"{group.get('lr')}, finite?); {said}"
    )
