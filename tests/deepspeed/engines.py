"""DeepSpeed engines on processes that talk over gloo, and what the tests look at in them."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lowprec_plugin import FixedPointTensor, memory, optim

FEATURES, WIDTH = 24, 300


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 5))


def begin(rank: int) -> None:
    """Make DeepSpeed ready in this process, which is one of two."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "DEEPSPEED_LOG_LEVEL": "error"}
    warnings.simplefilter("ignore")  # DeepSpeed's, in these processes alone
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}  # it would be compiled: a minute at first


def engine(rank: int, stage: int, dtype: str = "bfloat16", **given: Any) -> Any:
    """An engine of two processes over ``network()``, not adopted yet.

    ``given`` is of the config, and ``optimizer`` and ``quantized``.
    """
    begin(rank)
    import deepspeed

    torch.manual_seed(0)
    module = network()
    if given.pop("quantized", stage == 0):
        optim.quantize_(module)
    make = given.pop("optimizer", lambda params: torch.optim.AdamW(params, lr=1e-3))
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 8, "zero_allow_untested_optimizer": True, "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage} | given.pop("zero", {}), "bf16": {"enabled": dtype == "bfloat16"},
    } | given  # fmt: skip
    return deepspeed.initialize(model=module, optimizer=make(module.parameters()), config=config)[0]


def train(engine: Any, steps: int, first: int = 0, poison: int | None = None) -> list[float]:
    """Losses of ``steps`` steps on data that depend on rank and step alone; infinite inputs at step ``poison``."""
    dtype = engine.get_data_types()[0]
    losses = []
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(1000 * engine.global_rank + step)
        x = torch.randn(8, FEATURES, generator=generator)
        y = torch.sin(x[:, :5] * 2) + x[:, 5:10]
        if step == poison and engine.global_rank == 1:
            x[0] = torch.inf
        loss = nn.functional.mse_loss(engine(x.to(dtype)).float(), y)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def planes(adopted: Any) -> list[Tensor]:
    """A copy of every plane of this process's weights and state."""
    found = []
    for param in adopted.partitions:
        for tensor in [param, *adopted.optimizer.state[param].values()]:
            planes = tensor.blocks.planes if isinstance(tensor, FixedPointTensor) else [tensor]
            found += [plane.detach().clone() for plane in planes]
    return found


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def float_bytes(least: int) -> dict[tuple[str, int], int]:
    """How many live float tensors have storages of ``least`` bytes or more, by dtype and bytes."""
    found: dict[tuple[str, int], int] = {}
    for nbytes, (dtype, _) in memory.live_storages().values():
        if dtype.is_floating_point and nbytes >= least:
            key = (str(dtype).removeprefix("torch."), nbytes)
            found[key] = found.get(key, 0) + 1
    return found
