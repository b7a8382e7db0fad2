"""What the benchmark trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Transformer(nn.Module):
    """A byte-level transformer of torch's own layers; ten million parameters as it stands."""

    def __init__(self, width: int = 384, layers: int = 6, heads: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the byte at every place."""
        return self.head(self.encoder(self.embedding(ids)))  # type: ignore[no-any-return]


def matrices(elements: int, device: torch.device) -> list[nn.Parameter]:
    """Square parameters of 1024 x 1024 that make up ``elements``, with gradients."""
    params = []
    for _ in range(max(1, elements // 2**20)):
        param = nn.Parameter(torch.randn(1024, 1024, device=device))
        param.grad = torch.randn(1024, 1024, device=device) * 1e-2
        params.append(param)
    return params
