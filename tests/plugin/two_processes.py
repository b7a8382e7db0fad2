"""Trains on two CPU processes and saves each rank's state dict: run by test_plugin.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lowprec_plugin import FixedPointPrecision
from tests.plugin import users


class Save(Callback):
    def on_train_end(self, trainer, pl_module):
        saved = {"weights": pl_module.state_dict(), "traffic": trainer.precision_plugin.wire.report()}
        torch.save(saved, Path(sys.argv[1]) / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    seed_everything(0)
    Trainer(
        accelerator="cpu", strategy="ddp", devices=2, max_epochs=3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, plugins=FixedPointPrecision(), callbacks=[Save()],
    ).fit(users.Regressor(), users.vectors())  # fmt: skip
