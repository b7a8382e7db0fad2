"""What a process group was made with."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from lowprec_plugin.compat.lookup import TORCH, look_up

#: The backends whose groups say what they were made with.
_SAYING = tuple(getattr(dist, name) for name in ("ProcessGroupGloo", "ProcessGroupNCCL") if hasattr(dist, name))


def timeout_of(group: dist.ProcessGroup, device: torch.device) -> timedelta | None:
    """How long ``group`` waits for a collective of tensors on ``device``; ``None`` if its backend does not say.

    Raises:
        ValueError: if this torch keeps it elsewhere.
    """
    feature = "to wait for gradients as long as the group that you made"
    backend = look_up(group, "_get_backend", host=TORCH, feature=feature)(device)
    if not isinstance(backend, _SAYING):
        return None
    options = look_up(backend, "options", host=TORCH, feature=feature)
    return look_up(options, "_timeout", host=TORCH, feature=feature)  # type: ignore[no-any-return]
