"""Two users' own modules and data, which know nothing of this package."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Batch = tuple[Tensor, ...]
#: Of the command line: one of them, whole.
USERS = ["--model=tests.poc.users.Sorter", "--data=tests.poc.users.Clouds"]


def bits_of(param: Tensor) -> int:
    return getattr(getattr(param, "format", None), "word_length", 32)


class Sorter(LightningModule):
    """Which of three clouds a point is of. With dropout, whose random numbers come from where the shuffling's do.

    Args:
        explode: for formats of so many bits the loss is infinite.
    """

    #: Of every fit in this process, in order: the sum of each batch.
    seen: ClassVar[list[list[float]]] = []
    #: For formats of so many bits the step raises.
    fail: ClassVar[int] = 0

    def __init__(self, lr: float = 0.01, explode: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 3))
        self.lr, self.explode = lr, explode

    def on_fit_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        self.seen[-1].append(float(x.sum()))
        bits = bits_of(self.layers[0].weight)
        if bits == self.fail:
            raise RuntimeError(f"no {bits} bits here,\nfor reasons of my own")
        loss = nn.functional.cross_entropy(self.layers(x), y)
        self.log("train_loss", loss)
        return loss * torch.inf if bits == self.explode else loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self.layers(x).argmax(-1) == y).float().mean())

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        x, y = batch
        self.log("test_acc", (self.layers(x).argmax(-1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.lr)


class Wide(Sorter):
    """One that has wide layers, tells a logger of its own of itself and refuses rounding to nearest."""

    def __init__(self, lr: float = 0.01, explode: int = 0) -> None:
        super().__init__(lr, explode)
        self.layers = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), nn.Linear(256, 3))

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.logger.experiment.config.update({"lr": self.lr})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if getattr(self.layers[0].weight, "rounding", "") == "nearest":
            raise RuntimeError("nearest is not for me")
        return super().training_step(batch, batch_idx)


class Clouds(LightningDataModule):
    """300 points, always the same, in a new order in every epoch."""

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(3)
        labels = torch.arange(300) % 3
        points = torch.randn(300, 4, generator=generator) + 1.5 * labels.unsqueeze(1)
        self.points = TensorDataset(points, labels)

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.points, 15, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.points, 300)

    def test_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.points, 150)


class Line(LightningModule):
    """Least squares with its own data, a validation and no test; ``head`` is to stay in float."""

    def __init__(self, lr: float = 0.02) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 64), nn.Linear(64, 1)
        self.lr = lr

    def _loss(self, batch: Batch) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.head(self.body(x)), y)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log_dict({"val_loss": self._loss(batch), "val_size": float(len(batch[0]))})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)

    def configure_callbacks(self) -> list[Callback]:
        """Two that would end runs apart, and write files, if they were let."""
        return [EarlyStopping("val_size", patience=1), ModelCheckpoint()]

    def train_dataloader(self) -> DataLoader[Batch]:
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 16, shuffle=True)

    def val_dataloader(self) -> Any:
        return self.train_dataloader()


class Silent(Line):
    """Logs nothing that is a metric of quality."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_size", float(len(batch[0])))


class Other(Clouds):
    """The same under another name."""


class Pair(Sorter):
    """Two optimizers by hand; a training step makes a step of both, with the gradients of one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.rare = nn.Embedding(3, 4, sparse=True)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        x, y = batch
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.toggle_optimizer(optimizer)
            loss = nn.functional.cross_entropy(self.layers(x + self.rare(y)), y)
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        time.sleep(0.05)
        self.log("train_loss", loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.rare.parameters(), 0.1), torch.optim.SGD(self.layers.parameters(), 0.1)
