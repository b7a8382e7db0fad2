"""A small training whose end is known: least squares, from weights that are nearly right already."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Batch = tuple[Tensor, ...]
INPUTS, BATCH, ROWS, NOISE, OFF = 64, 256, 1024, 0.01, 0.004


class Regression(LightningModule):
    """64 weights below 1, each off by 0.004 at most; Adam, whose rate falls from ``lr`` to nothing.

    With the first rate no update is as large as half a code of ``<2,10>``.
    """

    lr = 4e-4

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(INPUTS, 1, bias=False)
        self.right = 2 * torch.rand(INPUTS, generator=torch.Generator().manual_seed(1)) - 1
        with torch.no_grad():
            self.line.weight.copy_(self.right + OFF * (2 * torch.rand(INPUTS) - 1))

    def _missed(self, batch: Batch) -> Tensor:
        x, y = batch
        return self.line(x).squeeze(1) - y

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._missed(batch).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_accuracy", (self._missed(batch).abs() < 2 * NOISE).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        steps = self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rows(self, seed: int) -> TensorDataset:
        made = torch.Generator().manual_seed(seed)
        x = torch.randn(ROWS, INPUTS, generator=made)
        return TensorDataset(x, x @ self.right + NOISE * torch.randn(ROWS, generator=made))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._rows(2), BATCH, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._rows(3), ROWS)


class Exploding(Regression):
    """Plain gradient descent at a rate beyond what any arithmetic stands."""

    lr = 10.0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)
