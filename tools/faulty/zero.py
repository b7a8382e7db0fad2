"""A user's training with DeepSpeed, which goes on from the checkpoint that ``latest`` names."""

from __future__ import annotations

import datetime
import os
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lowprec_plugin.deepspeed import adopt_engine
from tools.faulty.lives import BATCH, EVERY, STEPS, Life, batch, network
from tools.faulty.states import flat


def save(engine: Any, life: Life) -> None:
    """A checkpoint that ``latest`` names when every rank has written its part: docs/deepspeed.md."""
    tag = f"step{engine.global_steps}"
    engine.save_checkpoint(life.checkpoints, tag=tag, save_latest=False)  # ends with a barrier
    if life.rank == 0:
        (life.checkpoints / "latest.new").write_text(tag)
        os.replace(life.checkpoints / "latest.new", life.checkpoints / "latest")


def train(life: Life) -> None:
    """Train to the end, and save this rank's final state."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "DEEPSPEED_LOG_LEVEL": "error"}
    warnings.simplefilter("ignore")  # DeepSpeed's
    import deepspeed
    import deepspeed.ops

    # An op that DeepSpeed would compile at its first start. A kill meanwhile leaves the lock of torch's extensions
    # behind, and every later start waits for it.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    life.tell("begun")
    dist.init_process_group(
        "gloo", init_method=f"file://{life.store}", rank=life.rank, world_size=life.kind.ranks,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    config = {
        "train_micro_batch_size_per_gpu": BATCH, "zero_allow_untested_optimizer": True, "gradient_clipping": 1.0,
        "zero_optimization": {"stage": life.kind.stage}, "bf16": {"enabled": True},
    }  # fmt: skip
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config)
    adopted = adopt_engine(engine, seed=life.seed, **life.kind.plugin)
    named = life.checkpoints / "latest"
    if named.exists():
        engine.load_checkpoint(life.checkpoints)
    life.tell("resumed", named.read_text() if named.exists() else None)
    for step in range(engine.global_steps, STEPS):
        x, y = batch(life.rank, step)
        engine.backward(nn.functional.mse_loss(engine(x.bfloat16()).float(), y))
        engine.step()
        life.tell("step", step + 1)
        if (step + 1) % EVERY == 0:
            with life.saving(step + 1):
                save(engine, life)
    state = [adopted.optimizer.state[partition] for partition in adopted.partitions]
    torch.save(
        flat(adopted.partitions, "weights")
        | flat(dict(engine.module.named_parameters()), "weights of the engine")
        | flat(state, "optimizer")
        | flat(scheduler.state_dict(), "scheduler")
        | flat(engine.global_steps, "steps"),
        life.final(life.rank),
    )
    dist.barrier()
    dist.destroy_process_group()
