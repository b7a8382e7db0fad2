"""accelerate: its checkpoints of fixed-point training, in codes, or refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowprec_plugin import FixedPointTensor, optim
from tests.cases import planes

accelerate = pytest.importorskip("accelerate")


def prepared() -> tuple[Any, nn.Module, torch.optim.Optimizer]:
    accelerator = accelerate.Accelerator(cpu=True)
    module = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    optim.quantize_(module)
    optimizer = optim.AdamW(module.parameters(), 1e-2)
    module, optimizer = accelerator.prepare(module, optimizer)
    return accelerator, module, optimizer


def train(accelerator: Any, module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[torch.Tensor]:
    for step in steps:
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        accelerator.backward(module(x).square().mean())
        optimizer.step()
    return planes(module, optimizer)


def test_codes_are_saved_and_the_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    accelerator, module, optimizer = prepared()
    train(accelerator, module, optimizer, range(3))
    accelerator.save_state(str(tmp_path), safe_serialization=False)
    expected = train(accelerator, module, optimizer, range(3, 6))
    torch.manual_seed(1)
    accelerator, module, optimizer = prepared()
    accelerator.load_state(str(tmp_path))
    assert all(isinstance(param, FixedPointTensor) for param in module.parameters())
    found = train(accelerator, module, optimizer, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("save", ["save_state", "save_model"])
def test_safetensors_are_refused_in_words(save: str, tmp_path: Path) -> None:
    accelerator, module, optimizer = prepared()
    train(accelerator, module, optimizer, range(1))
    with pytest.raises(
        ValueError, match=r"no memory of floats.*with accelerate save_state\(safe_serialization=False\)"
    ):
        accelerator.save_state(str(tmp_path)) if save == "save_state" else accelerator.save_model(module, str(tmp_path))
