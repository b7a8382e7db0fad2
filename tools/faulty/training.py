"""A user's training under Lightning, which goes on from its last whole checkpoint when it is started again."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from lowprec_plugin import FixedPointPrecision, WordLengthRamp
from tools.faulty.lives import EPOCH, EVERY, STEPS, Life, batch, network
from tools.faulty.states import flat


class Batches:
    """Batches that are continued in the middle of an epoch: Lightning saves and loads ``state_dict``."""

    def __init__(self, rank: int) -> None:
        self.rank, self.given = rank, 0

    def __len__(self) -> int:
        return EPOCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.given % EPOCH, EPOCH):
            self.given += 1
            yield batch(self.rank, self.given)

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.given = state_dict["given"]


class Module(LightningModule):
    """Of a user."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Sharded(Module):
    """Of a user of FSDP2."""

    def configure_model(self) -> None:
        if isinstance(self.network, FSDPModule):  # Lightning calls this before every fit
            return
        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        for part in self.network:
            if isinstance(part, nn.Linear):
                fully_shard(part, mesh=mesh)
        fully_shard(self.network, mesh=mesh)


class Steps(Callback):
    """Tells the harness of every step."""

    def __init__(self, life: Life) -> None:
        self.life = life

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.life.tell("step", trainer.global_step)


def last_whole(life: Life) -> Path | None:
    """The newest checkpoint that is whole; the harness is told of newer files that do not load.

    A folder, of shards, is whole with DCP's ``.metadata``, written when every rank has written its shards, and with
    Lightning's ``meta.pt``, written after it, which must load. A folder without is no fault: it was being written.
    """
    found = sorted(life.checkpoints.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in found:
        is_folder = path.is_dir()
        if is_folder and not (path / ".metadata").exists():
            continue
        try:
            torch.load(path / "meta.pt" if is_folder else path, weights_only=True)
            return path
        except Exception as error:  # whatever a file that was cut off makes of torch.load
            if not is_folder:
                life.tell("cut off", f"{path.name}: {type(error).__name__}")
    return None


def train(life: Life) -> None:
    """Train to the end, and save this rank's final state."""
    ranks, sharded = life.kind.ranks, life.kind.strategy == "fsdp2"
    options = dict(life.kind.plugin)
    if "ramp" in options:
        options["ramp"] = WordLengthRamp(**options["ramp"])
    plugin = FixedPointPrecision(seed=life.seed, **options)
    life.tell("begun")
    resume = [last_whole(life) if life.rank == 0 else None]
    if ranks > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{life.store}", rank=life.rank, world_size=ranks,
            timeout=datetime.timedelta(seconds=60),
        )  # fmt: skip
        dist.broadcast_object_list(resume)
    strategy: str | Strategy = ModelParallelStrategy(ranks, 1) if sharded else life.kind.strategy
    # The last checkpoint of shards under the same name again would overwrite the only whole one: docs/sharding.md.
    checkpoints = ModelCheckpoint(
        life.checkpoints, filename="{step}", save_top_k=2, monitor="step", mode="max", save_last=not sharded,
        every_n_train_steps=EVERY,
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=ranks, strategy=strategy, max_epochs=STEPS // EPOCH, plugins=plugin, logger=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Steps(life), checkpoints],
    )  # fmt: skip
    save = trainer.save_checkpoint

    def told(filepath: str | Path, *args: Any, **options: Any) -> None:
        with life.saving(trainer.global_step):
            save(filepath, *args, **options)

    trainer.save_checkpoint = told  # type: ignore[method-assign]
    module = Sharded() if sharded else Module()
    life.tell("resumed", resume[0] and resume[0].name)
    trainer.fit(module, Batches(life.rank), ckpt_path=resume[0])
    if plugin.ramping is not None:
        assert plugin.ramping.history[-1]["step"] > EVERY, "words that never widen, or at once, are no trial of a ramp"
    (optimizer,) = trainer.optimizers
    (scheduler,) = trainer.lr_scheduler_configs
    torch.save(
        flat(module.state_dict(), "weights")
        | flat(optimizer.state_dict(), "optimizer")
        | flat(scheduler.scheduler.state_dict(), "scheduler")
        | flat(plugin.state_dict(), "plugin")
        | flat(trainer.global_step, "steps"),
        life.final(life.rank),
    )
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()
