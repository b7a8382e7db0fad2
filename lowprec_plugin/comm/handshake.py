"""Before gradients travel, all ranks must mean the same by the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist


def shake_hands(terms: Mapping[str, Any], group: dist.ProcessGroup | None) -> None:
    """Compare ``terms`` (name to value) with every rank's. Called by every rank of the group.

    Raises:
        ValueError: on every rank alike, if a rank's differ from the first rank's, with the first difference.
    """
    every: list[Mapping[str, Any]] = [{}] * dist.get_world_size(group)
    dist.all_gather_object(every, dict(terms), group=group)
    first = every[0]
    for rank, other in enumerate(every):
        for name in sorted({*first, *other}):
            mine, its = first.get(name, "nothing"), other.get(name, "nothing")
            if mine != its:
                raise ValueError(
                    f"the ranks disagree on {name}: rank 0 has {mine!r}, rank {rank} has {its!r}; "
                    "start every process with the same arguments and the same version of the package"
                )
