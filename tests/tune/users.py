"""A user's own module and data, small enough to train in a moment: find the factors that made the targets."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Regression(LightningModule):
    """Least squares; ``val_error`` is the root mean square distance of what is found from the truth.

    Args:
        lr: of SGD; 1000 diverges.
        outputs: of the layer.
        explode_below: below so many bits per weight the loss is infinite; 0: never.
    """

    def __init__(self, lr: float = 0.3, outputs: int = 4, explode_below: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(16, outputs, bias=False)
        self.lr, self.explode_below = lr, explode_below

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean square."""
        x, y = batch
        loss = nn.functional.mse_loss(self.layer(x), y)
        bits = getattr(getattr(self.layer.weight, "format", None), "word_length", 32)
        return loss * torch.inf if bits < self.explode_below else loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The distance from the truth, which every layer's output and weight takes part in."""
        x, y = batch
        self.log("val_error", nn.functional.mse_loss(self.layer(x), y).sqrt())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD, which has no state."""
        return torch.optim.SGD(self.parameters(), self.lr)


class Factors(LightningDataModule):
    """Targets made by factors that no narrow format holds, and shuffled anew in every epoch."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.outputs = outputs

    def setup(self, stage: str) -> None:
        """Always the same."""
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(256, 16, generator=generator)
        self.examples = TensorDataset(x, x @ torch.randn(16, self.outputs, generator=generator))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Sixteen batches."""
        return DataLoader(self.examples, 16, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """All of it."""
        return DataLoader(self.examples, 256)
