"""Other picklers than Python's own: fixed-point modules come back as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowprec_plugin import optim


def by_joblib(module: nn.Module, path: Path) -> Any:
    joblib = pytest.importorskip("joblib")
    joblib.dump(module, path)
    return joblib.load(path)


def by_cloudpickle(module: nn.Module, path: Path) -> Any:
    cloudpickle = pytest.importorskip("cloudpickle")
    return cloudpickle.loads(cloudpickle.dumps(module))


def by_torch(module: nn.Module, path: Path) -> Any:
    torch.save(module, path)
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize("through", [by_joblib, by_cloudpickle, by_torch])
def test_a_module_comes_back(through: Any, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 4))
    optim.quantize_(module)
    again = through(module, tmp_path / "x")
    x = torch.randn(2, 8)
    assert torch.equal(again(x)[0], module(x)[0])
    again.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"torch\.jit\.script cannot record"):
        torch.jit.script(again)
    optim.to_float_(again)
    assert all(type(param) is nn.Parameter for param in again.parameters())
