"""Wider words for a module and its optimizer in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lowprec_plugin import memory, optim


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


class Around(torch.optim.Optimizer):
    """Steps another, and keeps a slow copy of the parameters, which it goes back to in part."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        slow = {param: self.state[param].setdefault("slow", param.clone()) for param in self.param_groups[0]["params"]}
        self.inner.step()
        for param, before in slow.items():
            param.copy_(before.lerp_(param, 0.5))


def test_what_an_optimizer_holds_is_widened_with_it() -> None:
    """State of the one that it steps, and its copies of the parameters, whatever bits state has."""
    module = nn.Linear(300, 7)
    optim.quantize_(module, "fixed12")
    optimizer: Any = optim.adopt(Around(torch.optim.AdamW(module.parameters(), 1e-2)), optim.StepSettings(8))
    other = nn.Linear(300, 7)
    optim.quantize_(other, "fixed12")
    free: Any = optim.adopt(Around(torch.optim.AdamW(other.parameters(), 1e-2)))
    for each, around in ((module, optimizer), (other, free)):
        each(torch.ones(2, 300)).sum().backward()
        around.step()
        assert around.state[each.weight]["slow"].format.word_length == 12
        held = memory.report(each, around)
        optim.widen_(each, around, 16)
        assert around.state[each.weight]["slow"].format.word_length == 16
        assert held.float32_state == pytest.approx(3 * held.float32_weights, abs=16)  # the copy, two moments
    assert optimizer.inner.state[module.weight]["exp_avg"].format.word_length == 8
    assert free.inner.state[other.weight]["exp_avg"].format.word_length == 16
