"""What torch's dispatcher says of an operator."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from lowprec_plugin.compat.lookup import TORCH, look_up

_FEATURE = "to choose what an operation does to fixed-point tensors"

#: What ``tensor.to()`` comes to.
to_copy: Any = look_up(torch.ops.aten, "_to_copy", host=TORCH, feature=_FEATURE).default

#: What ``GradScaler.unscale_`` comes to: of gradients, whether any was not finite, and the inverse scale.
unscale: Any = look_up(
    torch.ops.aten, "_amp_foreach_non_finite_check_and_unscale_", host=TORCH, feature="to scale gradients in codes"
).default


@cache
def schema_of(function: Any) -> Any:
    """The schema of ``function``, an overload of an operator.

    Raises:
        ValueError: if this torch keeps it elsewhere; so do all functions here.
    """
    return look_up(function, "_schema", host=TORCH, feature=_FEATURE)


def is_composite(function: Any) -> bool:
    """Whether ``function``, an overload of an operator, is made of others."""
    return bool(look_up(function, "_can_decompose", host=TORCH, feature=_FEATURE)())
