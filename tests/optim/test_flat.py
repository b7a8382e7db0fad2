"""Flat tensors in blocks of consecutive elements, as ZeRO's partitions are (docs/decisions/0009-zero-partitions.md)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lowprec_plugin import FixedPointTensor, optim
from tests import cases


def flat(x: Tensor, rank: int = 0, format: str = "fixed16") -> FixedPointTensor:
    """A parameter of the shape of ``x``, flat, over codes of one row."""
    stored = FixedPointTensor.quantize(x.view(1, -1), format, rounding="nearest", label="flat", first_row=rank)
    stored.rounding = "stochastic"
    return nn.Parameter(stored.view(-1))  # type: ignore[return-value]


@pytest.mark.parametrize("elements", [1, 255, 256, 1000])
def test_blocks_are_of_consecutive_elements(elements: int) -> None:
    x = cases.floats((elements,))
    param = flat(x)
    assert param.shape == x.shape
    assert param.is_whole
    assert param.nbytes == 2 * elements + -(-elements // 256)
    # Without the row of codes, a block is one element (docs/decisions/0002).
    assert FixedPointTensor.quantize(x, "fixed16").nbytes == 3 * elements
    row = FixedPointTensor.quantize(x.view(1, -1), "fixed16", rounding="nearest")
    assert torch.equal(param.dequantize(), row.dequantize().view(-1))


OPTIMIZERS = {
    "AdamW": lambda params: optim.AdamW(params, lr=0.01),
    "SGD": lambda params: optim.SGD(params, lr=0.01, momentum=0.9),
    "NAdam": lambda params: optim.adopt(torch.optim.NAdam(params, lr=0.01)),
}


def steps(name: str, params: list[FixedPointTensor], grads: list[list[Tensor]]) -> torch.optim.Optimizer:
    optimizer = OPTIMIZERS[name](params)
    for each in grads:
        for param, grad in zip(params, each, strict=True):
            param.grad = grad.view(param.shape)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_flat_parameter_steps_as_its_row(name: str) -> None:
    x, grads = cases.floats((1000,)), [[torch.randn(1000)] for _ in range(3)]
    one = flat(x)
    other = FixedPointTensor.quantize(x.view(1, -1), "fixed16", rounding="nearest", label="flat")
    other.rounding = "stochastic"
    row: FixedPointTensor = nn.Parameter(other)  # type: ignore[assignment]
    flat_state, row_state = steps(name, [one], grads).state[one], steps(name, [row], grads).state[row]
    for a, b in [(one, row), *((flat_state[key], row_state[key]) for key in flat_state)]:
        if isinstance(a, FixedPointTensor):
            assert a.shape == (1000,)
            assert all(torch.equal(p, q) for p, q in zip(a.blocks.planes, b.blocks.planes, strict=True))
    assert any(isinstance(value, FixedPointTensor) for value in flat_state.values())


def test_random_bits_do_not_depend_on_the_number_of_equal_partitions() -> None:
    x, grads = torch.randn(2048), [torch.randn(2048) for _ in range(3)]

    def stepped(partitions: int, ranked: bool = True) -> Tensor:
        params = [flat(part, rank if ranked else 0) for rank, part in enumerate(x.chunk(partitions))]
        steps("AdamW", params, [list(grad.chunk(partitions)) for grad in grads])
        return torch.cat([param.dequantize() for param in params])

    assert torch.equal(stepped(1), stepped(2))
    assert torch.equal(stepped(1), stepped(8))
    assert not torch.equal(stepped(1), stepped(2, ranked=False))


def test_what_a_checkpoint_does() -> None:
    one, other = flat(torch.randn(1000)), flat(torch.zeros(1000))
    optimizer = steps("NAdam", [one], [[torch.randn(1000)]])
    again = OPTIMIZERS["NAdam"]([other])
    other.data.copy_(one.data)
    again.load_state_dict(optimizer.state_dict())
    assert other.roundings == one.roundings > 0
    for a, b in [(one, other), (optimizer.state[one]["exp_avg"], again.state[other]["exp_avg"])]:
        assert b.shape == (1000,)
        assert all(torch.equal(p, q) for p, q in zip(a.blocks.planes, b.blocks.planes, strict=True))
    floats = flat(torch.zeros(1000))
    floats.data.copy_(one.dequantize())  # floats that came out of the format are exact in it
    assert torch.equal(floats.codes, one.codes)
    part = flat(torch.zeros(1000))
    part.data[:700].copy_(one.data[:700])  # what ZeRO saves is without its padding
    assert torch.equal(part[:700].detach(), one[:700].detach())
    assert not part[700:].any()


def test_copies_stay_in_blocks() -> None:
    param = flat(torch.randn(1000))
    for copied in (param.detach().clone(), param.detach().to("cpu", copy=True)):
        assert isinstance(copied, FixedPointTensor)
        assert copied.shape == (1000,)
        assert copied.codes.shape == (1, 1000)
        assert copied.codes.data_ptr() != param.codes.data_ptr()
    before = param.codes.clone()
    param.data = torch.zeros(1000)
    assert param.codes.shape == (1, 1000)
    assert not torch.equal(param.codes, before)
    param.data.add_(1.0)
    assert torch.equal(param.dequantize(), torch.ones(1000))


def test_an_embedding_reads_a_reshaped_window_right() -> None:
    weight = FixedPointTensor.quantize(torch.randn(6, 4), "fixed16")
    ids = torch.tensor([0, 5, 11])
    found = nn.functional.embedding(ids, weight.view(12, 2))
    assert torch.equal(found, weight.dequantize().view(12, 2)[ids])
