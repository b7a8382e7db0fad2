from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from lowprec_plugin import FixedPointTensor, optim


def net() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 30), nn.Sequential(nn.LSTM(30, 8)))
    optim.quantize_(module)
    return module


def values(module: nn.Module) -> list[torch.Tensor]:
    return [param.dequantize(torch.float32) for param in module.parameters()]  # type: ignore[attr-defined]


def test_a_module_moves_while_a_graph_holds_it() -> None:
    module = net()
    before, params = values(module), list(module.parameters())
    output, _ = module(torch.randn(3, 20))
    module.cpu()
    module.to(torch.bfloat16)
    assert [param is other for param, other in zip(module.parameters(), params, strict=True)] == [True] * 6
    assert all(param.dtype == torch.bfloat16 and isinstance(param, FixedPointTensor) for param in params)
    assert all(torch.equal(a, b) for a, b in zip(before, values(module), strict=True))
    module.to(torch.float32)
    output.sum().backward()
    assert all(param.grad is not None and param.grad.dtype == torch.float32 for param in params)
    assert module(torch.randn(3, 20))[0].dtype == torch.float32


def test_gradients_move_along() -> None:
    module = nn.Linear(20, 30)
    optim.quantize_(module)
    module(torch.ones(1, 20)).sum().backward()
    module.to(torch.bfloat16)
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_move_by_themselves(duplicate) -> None:  # type: ignore[no-untyped-def]
    module = net()
    other = duplicate(module)
    other.to(torch.bfloat16)
    assert {param.dtype for param in module.parameters()} == {torch.float32}
    assert {param.dtype for param in other.parameters()} == {torch.bfloat16}


def test_shared_memory() -> None:
    module = net()
    module.share_memory()
    assert all(param.is_shared() for param in module.parameters())
    assert all(isinstance(param, FixedPointTensor) for param in module.parameters())
