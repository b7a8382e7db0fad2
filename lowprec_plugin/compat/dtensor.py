"""The inside of a DTensor."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor

from lowprec_plugin.compat.lookup import TORCH, look_up


def shard_of(tensor: DTensor) -> Tensor:
    """What this rank holds of ``tensor``, not a copy. ``to_local()`` gives a view that autograd follows.

    Raises:
        ValueError: if this torch keeps it elsewhere.
    """
    feature = "to reach the codes of a sharded tensor"
    return look_up(tensor, "_local_tensor", host=TORCH, feature=feature)  # type: ignore[no-any-return]
