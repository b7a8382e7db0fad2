"""An ordinary LightningModule that classifies images. It knows nothing of fixed-point."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowprec_plugin.compat.bases import LightningModule


class MLP(nn.Sequential):
    """A fully connected network with ReLU, such as the 784-1000-1000-10 of Gupta et al. 2015."""

    def __init__(self, inputs: int = 64, hidden: Sequence[int] = (256, 256), classes: int = 10) -> None:
        sizes = [inputs, *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(sizes[-1], classes))


class CNN(nn.Sequential):
    """The paper's network for MNIST: two 5x5 convolutions (8 and 16 maps) with 2x2 max pooling, 128 units, softmax."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(16 * 4 * 4, 128), nn.ReLU(), nn.Linear(128, classes),
        )  # fmt: skip


class Classifier(LightningModule):
    """Cross entropy, AdamW and a cosine schedule over the whole run.

    Args:
        network: maps images to one logit per class.
        lr, weight_decay: AdamW's.
    """

    def __init__(self, network: nn.Module, lr: float = 2e-3, weight_decay: float = 0.01) -> None:
        super().__init__()
        self.network = network
        self.lr, self.weight_decay = lr, weight_decay

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch."""
        return self.network(images)  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of a batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        images, labels = batch
        logits = self(images)
        self.log(f"{stage}_loss", nn.functional.cross_entropy(logits, labels), prog_bar=True)
        self.log(f"{stage}_accuracy", (logits.argmax(-1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW, and a cosine to zero over the steps of the whole run."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
