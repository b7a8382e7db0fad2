"""Wider words for a module and its optimizer in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowprec_plugin import optim


@pytest.mark.parametrize("state_word_length", [None, 8])
def test_weights_and_what_is_not_pinned_become_wider(state_word_length: int | None) -> None:
    net = nn.Linear(8, 4)
    optim.quantize_(net, "fixed12")
    optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9, state_word_length=state_word_length)
    net(torch.randn(3, 8)).sum().backward()
    optimizer.step()
    before = [param.dequantize() for param in net.parameters()]
    optim.widen_(net, optimizer, 16)
    assert {str(param.format) for param in net.parameters()} == {"fixed16"}
    momentum = {str(state["momentum_buffer"].format) for state in optimizer.state.values()}
    assert momentum == {"fixed8" if state_word_length else "fixed16"}
    assert all(torch.equal(param.dequantize(), each) for param, each in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("word_length", [1, 25, "16", 16.0])
def test_what_is_no_word_length_is_refused(word_length: int) -> None:
    net = nn.Linear(8, 4)
    optim.quantize_(net, "fixed12")
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=f"word_length={word_length!r} is not"):
        optim.widen_(net, optimizer, word_length)
    assert str(net.weight.format) == "fixed12"


def test_an_optimizer_that_was_not_adopted_is_refused() -> None:
    net = nn.Linear(8, 4)
    optim.quantize_(net, "fixed12")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for given in (optimizer, [optimizer]):
        with pytest.raises(ValueError, match="SGD is not of this package"):
            optim.widen_(net, given, 16)
    assert str(net.weight.format) == "fixed12"
    optim.adopt(optimizer)
    optim.widen_(net, optimizer, 16)
    assert str(net.weight.format) == "fixed16"
