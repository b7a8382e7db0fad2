"""Models to plan, small but of every kind of parameter."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lowprec_plugin.bench.models import Transformer
from lowprec_plugin.tasks import CNN, MLP


class Odd(nn.Module):
    """One-dimensional, narrow, scalar and frozen parameters, tied weights, an embedding, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 300)
        self.blocks = nn.ModuleList(nn.Linear(300, 300) for _ in range(3))
        self.norm, self.narrow = nn.BatchNorm1d(300), nn.Linear(300, 3, bias=False)
        self.back, self.head = nn.Linear(3, 300), nn.Linear(300, 50)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(()))
        self.back.bias.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.head(self.scale * self.back(self.narrow(self.norm(x))))


class Shardable(Odd):
    """The same without a scalar, which FSDP2 refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


def small_transformer() -> nn.Module:
    """The bench's, two layers narrower than it comes."""
    return Transformer(width=96, layers=2, heads=4)


def batch(module: nn.Module) -> Tensor:
    """What it can be called with."""
    if isinstance(module, Odd):
        return torch.randint(50, (8,))
    if isinstance(module, Transformer):
        return torch.randint(256, (2, 16))
    return torch.randn(4, 1, 28, 28) if isinstance(module, CNN) else torch.randn(4, 64)


MODELS = {"digits": MLP, "mnist": CNN, "transformer": small_transformer, "odd": Odd}


class NeedsMemory(nn.Linear):
    """Looks at its weights while it is made."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.first = float(self.weight.detach()[0, 0])


class LightningNeedsMemory(LightningModule):
    """The same, as a configuration's model."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = NeedsMemory()
