from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowprec_plugin import FixedPointTensor, optim
from lowprec_plugin.arithmetic.reference import rounding as reference
from lowprec_plugin.optim.lost_updates import evidence_of
from tests.optim import habits


def code_size(tensor: FixedPointTensor) -> Tensor:
    return reference.code_size(tensor.blocks, tensor.format).reshape(tensor.shape)


def param(format: str = "<4,8>", rows: int = 64) -> nn.Parameter:
    return nn.Parameter(FixedPointTensor.quantize(torch.randn(rows, 300), format))


@pytest.mark.parametrize("format", ["<4,8>", "fixed12", "fixed8", "fixed20"])
def test_the_size_of_a_code(format: str) -> None:
    tensor = FixedPointTensor.quantize(torch.randn(5, 600) * torch.logspace(-5, 5, 5).unsqueeze(1), format)
    codes = tensor.dequantize().double() / code_size(tensor)
    assert torch.equal(codes, codes.round())
    limit = 2 ** (tensor.format.word_length - 1)
    assert codes.abs().max() <= limit
    if tensor.format.dynamic:
        assert all(row.abs().max() >= limit / 2 - 1 for row in codes)


def test_updates_of_a_known_size() -> None:
    """SGD moves every weight by lr times its gradient: so many codes, exactly."""
    code = 2.0**-8
    for codes, lost, noise in ((0.25, 1.0, (0.75 / 0.25) ** 0.5), (4.0, 0.0, 0.0), (2.5, 0.0, 0.5 / 2.5)):
        weight = param()
        weight.grad = torch.full(weight.shape, codes * code)
        weight.grad[:2] = 0.0  # these do not move, and are no evidence
        evidence = evidence_of(optim.SGD([weight], lr=1.0))
        assert evidence is not None
        assert evidence.lost == lost
        assert evidence.noise == pytest.approx(noise, rel=1e-5)


def test_nearest_loses_the_whole_of_a_small_update() -> None:
    weight = param()
    weight.grad = torch.full(weight.shape, 0.25 * 2.0**-8)
    evidence = evidence_of(optim.SGD([weight], lr=1.0, rounding="nearest"))
    assert evidence is not None
    assert evidence.noise == pytest.approx(1.0)


def test_of_an_optimizer_that_holds_another_it_is_what_that_does() -> None:
    weight = param()
    optimizer: Any = optim.adopt(habits.Inner([weight]))  # lr=0.05, by the SGD that it holds
    for codes, lost in ((0.25, 1.0), (4.0, 0.0)):
        weight.grad = torch.full(weight.shape, 20 * codes * 2.0**-8)
        evidence = evidence_of(optimizer)
        assert evidence is not None
        assert evidence.lost == lost


OPTIMIZERS: dict[str, Any] = {
    "AdamW": lambda params: optim.AdamW(params, lr=1e-3),
    "SGD": lambda params: optim.SGD(params, lr=1e-2, momentum=0.9),
    "RMSprop": lambda params: optim.adopt(torch.optim.RMSprop(params, lr=1e-3, momentum=0.5)),
    "Lion": lambda params: optim.Lion(params, lr=1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_predicts_the_rounding_error_and_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    weight = param("fixed12", rows=200)
    optimizer = OPTIMIZERS[name]([weight])
    for _ in range(3):
        weight.grad = torch.randn(weight.shape)
        optimizer.step()
    assert isinstance(weight, FixedPointTensor)
    state = {key: value.clone() for key, value in optimizer.state[weight].items()}
    before, size = weight.dequantize(), code_size(weight)
    evidence = evidence_of(optimizer)
    assert evidence is not None
    assert torch.equal(weight.dequantize(), before)
    for key, value in optimizer.state[weight].items():
        assert torch.equal(value, state[key])

    floats = nn.Parameter(before.clone())  # the same step in float32
    twin = type(optimizer).float_class(
        [floats], **{k: v for k, v in optimizer.defaults.items() if k in ("lr", "momentum")}
    )
    twin.state[floats] = {key: dequantized(value) for key, value in state.items()}
    twin.param_groups[0].update({k: v for k, v in optimizer.param_groups[0].items() if k != "params"})
    floats.grad = weight.grad.clone()
    twin.step()
    optimizer.step()
    update, moved = floats.detach() - before, weight.dequantize() - before
    assert evidence.lost == pytest.approx(float((update.abs() < size / 2).double().mean()), abs=0.01)
    noise = float((moved - update).square().mean().sqrt() / update.square().mean().sqrt())
    assert evidence.noise == pytest.approx(noise, rel=0.1)


def dequantized(value: Tensor) -> Tensor:
    return value.dequantize() if isinstance(value, FixedPointTensor) else value.clone()


def test_without_gradients_there_is_none() -> None:
    assert evidence_of(optim.SGD([param()], lr=1.0)) is None


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38])
def test_of_a_step_that_is_not_finite_there_is_none(value: float) -> None:
    weight = param()
    weight.grad = torch.full(weight.shape, value)
    assert evidence_of(optim.SGD([weight], lr=10.0)) is None


def test_of_a_step_that_moves_nothing_none_is_lost() -> None:
    weight = param()
    weight.grad = torch.zeros(weight.shape)
    assert evidence_of(optim.SGD([weight], lr=1.0)) == (0.0, 0.0)
