"""What a user of ``pytorch_lightning`` has written: nothing here imports Lightning under its other name."""

from __future__ import annotations

from typing import Any

import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Learning:
    """What a LightningModule of either name does."""

    net: nn.Module
    log: Any
    parameters: Any

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_accuracy", (logits.argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2)


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2))


class Net(Learning, pytorch_lightning.LightningModule):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.net = network(width)


class Data(pytorch_lightning.LightningDataModule):
    def setup(self, stage: str) -> None:
        inputs = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
        self.examples = TensorDataset(inputs, (inputs.sum(1) > 0).long())

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.examples, 16)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.examples, 64)


def make() -> Net:
    return Net(8)
