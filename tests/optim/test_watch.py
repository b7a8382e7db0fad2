"""An optimizer that nobody adopted is told of, once; an adopted one is not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from lowprec_plugin import optim


def steps(optimizer: Any, module: nn.Module, count: int = 2) -> None:
    for _ in range(count):
        module(torch.ones(2, 8)).sum().backward()
        optimizer.step()


def test_an_optimizer_that_is_not_adopted_is_told_of_once() -> None:
    module = nn.Linear(8, 4)
    optimizer = torch.optim.AdamW(module.parameters())
    optim.quantize_(module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps(optimizer, module)
    (only,) = caught
    assert "this AdamW updates fixed-point parameters by operations that round one by one" in str(only.message)
    assert only.filename == __file__  # points at the user's line


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.NAdam])
def test_adopted_and_float_ones_are_not(kind: Any) -> None:
    module, plain = nn.Linear(8, 4), nn.Linear(8, 4)
    optim.quantize_(module)
    steps(optim.adopt(kind(module.parameters(), lr=1e-3)), module)
    steps(kind(plain.parameters(), lr=1e-3), plain)
