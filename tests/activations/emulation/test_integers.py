"""Emulated networks against integer arithmetic, forwards and backwards, integer for integer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowprec_plugin import FixedPointFormat, optim
from lowprec_plugin.activations.emulation import Emulation, emulate
from tests.activations.emulation import integers

WEIGHTS, ACTIVATIONS, ERRORS = FixedPointFormat(16, 13), FixedPointFormat(16, 10), FixedPointFormat(14, 11)


def emulation(accumulate: str = "exact") -> Emulation:
    return Emulation(str(ACTIVATIONS), str(ERRORS), rounding="nearest", accumulate=accumulate)  # type: ignore[arg-type]


def _fraction(format: FixedPointFormat) -> int:
    assert format.fraction_length is not None
    return format.fraction_length


W, A, E = _fraction(WEIGHTS), _fraction(ACTIVATIONS), _fraction(ERRORS)


def weights_of(param: Tensor) -> integers.Codes:
    return integers.codes_of(param.dequantize(), W)


@pytest.mark.parametrize("magnitude", [1.0, 30.0])  # the larger saturates
def test_linear_relu_linear(magnitude: float) -> None:
    net = nn.Sequential(nn.Linear(70, 33), nn.ReLU(), nn.Linear(33, 5))
    optim.quantize_(net, WEIGHTS)
    x, weight = magnitude * torch.randn(9, 70), torch.randn(9, 5)
    with emulate(net, emulation()) as emulator:
        out = net(x)
    (out * weight).sum().backward()

    first, first_bias, second, second_bias = (weights_of(param) for param in net.parameters())
    a0 = integers.quantized(x, A, 16)
    z1 = integers.rounded(a0 @ first.T + (first_bias << A), W, 16)
    a1 = np.maximum(z1, 0)
    z2 = integers.rounded(a1 @ second.T + (second_bias << A), W, 16)
    assert torch.equal(out, integers.floats(z2, A))
    e2 = integers.quantized(weight, E, 14)
    # The error of a layer's input is summed and rounded once; relu passes it or not.
    e1 = np.where(z1 > 0, integers.rounded(e2 @ second, W, 14), 0)
    for param, gradient in zip(net.parameters(), (e1.T @ a0, e1.sum(0) << A, e2.T @ a1, e2.sum(0) << A), strict=True):
        assert torch.equal(param.grad, integers.floats(gradient, A + E))
    saturated = (magnitude > 1) == (emulator.saturated()["activations"]["0"] > 0)
    assert saturated


def test_convolution_and_pooling() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return functional.max_pool2d(functional.relu(self.conv(x)), 2)

    net = Network()
    optim.quantize_(net, WEIGHTS)
    x = torch.rand(2, 3, 8, 8)
    with emulate(net, emulation()):
        out = net(x)
    out.backward(torch.ones_like(out))

    kernel, bias = weights_of(net.conv.weight), weights_of(net.conv.bias)
    seen = integers.patches(integers.quantized(x, A, 16), 3)
    z = integers.rounded(seen @ kernel.reshape(4, -1).T + (bias << A), W, 16)  # batch, rows, columns, channels
    a = np.maximum(z, 0).transpose(0, 3, 1, 2)
    pooled = a.reshape(2, 4, 3, 2, 3, 2).max((3, 5))
    assert torch.equal(out, integers.floats(pooled, A))
    # Where two of a window are equal the first has the error, and a zero has none: compare by torch's own selection.
    chosen = functional.max_pool2d(integers.floats(a, 0).requires_grad_(), 2)
    (selection,) = torch.autograd.grad(chosen.sum(), chosen.grad_fn.next_functions[0][0].variable)  # type: ignore
    error = integers.codes_of(selection * (integers.floats(a, 0) > 0), E)
    gradient = np.einsum("bcij,bijk->ck", error, seen).reshape(kernel.shape)
    assert torch.equal(net.conv.weight.grad, integers.floats(gradient, A + E))


def test_float32_sums_differ_where_they_round() -> None:
    """The negative control: with wide sums float32 does not give the integers, and exact sums do."""
    net = nn.Linear(4096, 64)
    with torch.no_grad():
        net.weight.uniform_(-3.9, 3.9)
    optim.quantize_(net, WEIGHTS)
    x = 31 * torch.rand(8, 4096) - 15.5
    # Products of 31 significant bits; rounded to 24 bits behind the point's place they differ in the last codes.
    fine = Emulation("<14,10>", None, rounding="nearest", accumulate="exact")
    coarse = Emulation("<14,10>", None, rounding="nearest")
    with emulate(net, fine):
        exact = net(x)
    with emulate(net, coarse):
        approximate = net(x)
    sums = integers.quantized(x, 10, 24) @ weights_of(net.weight).T + (weights_of(net.bias) << 10)
    assert torch.equal(exact, integers.floats(integers.rounded(sums, W, 24), 10))
    assert not torch.equal(exact, approximate)


EXACT = Emulation("<4,12>", accumulate="exact")


def test_exact_sums_refuse_what_float64_would_round() -> None:
    net = nn.Linear(1 << 13, 2)
    optim.quantize_(net, FixedPointFormat(24, 20))
    message = r"'linear' in module '' sums 8192 products of 46 bits: 59\.0 bits, .* up to 53"
    with emulate(net, Emulation("<4,20>", accumulate="exact")), pytest.raises(ValueError, match=message):
        net(torch.rand(3, 1 << 13))


class Applies(nn.Module):
    def __init__(self, operation: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2, 8))
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x, self.weight)


def test_exact_sums_refuse_operands_off_the_grid() -> None:
    x = torch.rand(3, 8)
    message = r"needs operands in static formats, and one of 'linear' .* is float32"
    with emulate(net := nn.Linear(8, 2), EXACT), pytest.raises(ValueError, match=message):
        net(x)

    def behind(x: Tensor, weight: Tensor) -> Tensor:
        x = 2 * x
        x.detach().numpy()[0] = 1 / 3
        return functional.linear(x, weight)

    aside = Applies(behind)
    optim.quantize_(aside, FixedPointFormat(16, 12))
    message = "an operand of 'linear' in module '' holds numbers that are not <4,12>'s"
    with emulate(aside, EXACT), pytest.raises(ValueError, match=message):
        aside(x)
    unknown = Applies(lambda x, weight: torch.einsum("bi,oi->bo", x, weight))
    with emulate(unknown, EXACT), pytest.raises(ValueError, match="does not know the sums of 'einsum'"):
        unknown(x)
