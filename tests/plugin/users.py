"""Ordinary LightningModules, written with no thought of fixed-point, and the ways people train them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Batch = tuple[Tensor, ...]


def vectors(samples: int = 64) -> DataLoader[Batch]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 12, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :1] * x[:, 1:2] + 0.5 * x[:, 2:3]), batch_size=16)


def images(samples: int = 32) -> DataLoader[Batch]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size=8)


def tokens(samples: int = 32) -> DataLoader[Batch]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 20, (samples, 10), generator=generator)
    return DataLoader(TensorDataset(x), batch_size=8)


class Regressor(LightningModule):
    """A small MLP with any optimizer and scheduler."""

    def __init__(
        self,
        make_optimizer: Callable[[Any], torch.optim.Optimizer] = lambda params: torch.optim.AdamW(params, 1e-2),
        make_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        interval: str = "epoch",
        lr: float = 1e-2,
    ) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 1))
        self.make_optimizer, self.make_scheduler, self.interval = make_optimizer, make_scheduler, interval

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("test_loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.make_scheduler(optimizer), "interval": self.interval, "monitor": "train_loss"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class LearningRateByAttribute(Regressor):
    """For LearningRateFinder, which sets ``lr``."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.lr)


class Manual(Regressor):
    """Manual optimization with a closure-free step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer = self.optimizers()
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()
        self.log("train_loss", loss)


class GAN(LightningModule):
    """Two networks, two optimizers, manual optimization; weights of the critic clipped through ``.data``."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12))
        self.critic = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 1))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        generator_optimizer, critic_optimizer = self.optimizers()
        real = batch[0]
        self.toggle_optimizer(critic_optimizer)
        fake = self.generator(torch.randn(len(real), 4)).detach()
        loss = self.critic(fake).mean() - self.critic(real).mean()
        critic_optimizer.zero_grad()
        self.manual_backward(loss)
        critic_optimizer.step()
        for param in self.critic.parameters():
            param.data.clamp_(-0.1, 0.1)
        self.untoggle_optimizer(critic_optimizer)
        self.toggle_optimizer(generator_optimizer)
        loss = -self.critic(self.generator(torch.randn(len(real), 4))).mean()
        generator_optimizer.zero_grad()
        self.manual_backward(loss)
        generator_optimizer.step()
        self.untoggle_optimizer(generator_optimizer)
        self.log("train_loss", loss)

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.generator.parameters(), 1e-3, betas=(0.5, 0.9)),
            torch.optim.RMSprop(self.critic.parameters(), 1e-3),
        ]


class Freezing(Regressor):
    """The first layer is frozen, and thawed after the first epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.net[0].requires_grad_(True)


class Convolutional(LightningModule):
    """Convolutions, batch normalisation, pooling, SGD with momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.GroupNorm(2, 8), nn.ConvTranspose2d(8, 4, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
        )  # fmt: skip

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)


class LanguageModel(LightningModule):
    """Embedding with padding, torch's own TransformerEncoder, output weights tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embedding.weight

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        ids = batch[0]
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1] - 1)
        logits = self.head(self.encoder(self.embedding(ids[:, :-1]), mask=mask, is_causal=True))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        decayed = [param for param in self.parameters() if param.ndim > 1]
        others = [param for param in self.parameters() if param.ndim <= 1]
        return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "lr": 2e-3}], 1e-3)


class HuggingFace(LightningModule):
    """A Hugging Face transformer built from a config."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.model(batch[0], labels=batch[0]).loss
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-3)
