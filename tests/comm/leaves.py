"""One of two processes, of which the second leaves by an exception of the user's in the middle of a backward pass.

``python -m tests.comm.leaves RANK STORE``
"""

from __future__ import annotations

import datetime
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lowprec_plugin import comm


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        if failing:
            raise KeyError("the user's")
        return grad


class SlowToEnd:
    """Keeps the interpreter shutting down until after the other process has sent its part."""

    def __del__(self, sleep: Any = time.sleep) -> None:
        sleep(4)


failing, slow = False, None

if __name__ == "__main__":
    torch.set_num_threads(1)
    rank = int(sys.argv[1])
    dist.init_process_group(
        "gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(60, 600), nn.Linear(600, 600)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(Fails.apply(self.first(x)))  # type: ignore[no-any-return, no-untyped-call]

    model = DistributedDataParallel(Net(), bucket_cap_mb=0.01)
    model.register_comm_hook(comm.DDPState(model, 8), comm.ddp_hook)
    for _ in range(3):
        model(torch.randn(4, 60)).sum().backward()
    loss = model(torch.randn(4, 60)).sum()
    if rank == 0:
        time.sleep(2.5)
    else:
        failing, slow = True, SlowToEnd()
    try:
        loss.backward()
    except (KeyError, RuntimeError):
        sys.exit(3)
