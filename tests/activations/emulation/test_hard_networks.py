"""Networks that do things in unusual ways: in place, by hand, again, under other modes, with an error half-way."""

from __future__ import annotations

import gc
import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from lowprec_plugin import FixedPointFormat, keep_activations, optim
from lowprec_plugin.activations.emulation import Emulation, emulate
from tests.activations.emulation.test_emulate import COARSE, Rounds, on_grid

X = torch.linspace(-3, 3, 5 * 4 * 9 * 8).reshape(5, 4, 9, 8)

IN_PLACE = {
    "dropout": nn.Dropout(0.3, inplace=True),
    "silu": nn.SiLU(inplace=True),
    "leaky relu": nn.LeakyReLU(0.3, inplace=True),
    "hardswish": nn.Hardswish(inplace=True),
    "elu": nn.ELU(inplace=True),
    "relu": nn.ReLU(inplace=True),
    "clamp": lambda x: x.clamp_(-0.33, 0.33),
    "augmented": lambda x: x.__itruediv__(3),
    "a view": lambda x: x[:, 1].mul_(0.3),
    "products": lambda x: x[0, 0].addmm_(x[0, 1], 0.3 * torch.eye(8)),
    "filled": lambda x: functional.relu(x.masked_fill(x > 0, 1 / 3)) * 1,
    "negative": lambda x: -(x - 8),  # of the smallest number, the largest is not it
}


class Layer(nn.Module):
    """As :class:`Rounds`, where there are no gradients."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)
        self.operation = operation

    def forward(self, x: Tensor) -> Any:
        return self.operation(self.layer(x))


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("mode", ["training", "no_grad", "inference"])
def test_what_changes_in_place_is_rounded(name: str, mode: str) -> None:
    net = (Rounds if mode == "training" else Layer)(lambda x: IN_PLACE[name](x + 0))
    if mode == "training":
        with emulate(net, COARSE):
            out = net(X)
        out.sum().backward()
        assert on_grid(net.layer.bias.grad)
    else:
        with torch.inference_mode(mode == "inference"), torch.no_grad(), emulate(net, COARSE):
            out = net(X)
    assert on_grid(out)
    assert float(out.detach().max()) < 8
    assert bool((out != 0).any())


def test_in_place_computes_the_same() -> None:
    fine = Emulation("fixed24", rounding="nearest")
    for name in ("silu", "leaky relu", "elu", "clamp", "a view"):
        net = Layer(lambda x, name=name: IN_PLACE[name](x + 0))
        expected = net(X)
        expected.square().sum().backward()
        gradient, net.layer.weight.grad = net.layer.weight.grad, None
        with emulate(net, fine):
            out = net(X)
        out.square().sum().backward()
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(net.layer.weight.grad, gradient, rtol=1e-4, atol=1e-2)


def test_out_is_rounded() -> None:
    def operation(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = torch.zeros_like(x)
        return torch.mul(x, 0.3, out=out), out, torch.matmul(x, x.mT, out=x.new_zeros(*x.shape[:2], 9, 9))

    net = Layer(operation)
    with torch.no_grad(), emulate(net, COARSE):
        assert all(on_grid(out) for out in net(X))


class Codebook(nn.Module):
    """With a running mean of its own making, as vector quantisers have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("second", torch.zeros(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        with torch.no_grad():
            self.mean.mul_(0.7).add_(0.3 * y.mean(0))
            self.second.addmm_(y.T, y, alpha=0.3)
        return y


def test_running_means_stay_float() -> None:
    net = Codebook()
    with emulate(net, COARSE):
        for _ in range(3):
            net(torch.rand(9, 4) + 2)
    for statistic in (net.mean, net.second):
        assert not on_grid(statistic)
        assert bool((statistic != 0).any())


def test_a_whole_number_that_is_filled_in_is_no_number_of_the_format() -> None:
    everywhere = torch.arange(8).expand(5, 4, 9, 8)
    fills = (
        lambda x: x.masked_fill(x == x, 100), lambda x: torch.where(x == x, 100, x),
        lambda x: functional.pad(x[..., :0], (0, 8), value=100), nn.ConstantPad1d((-8, 8), 100),
        lambda x: x.scatter(-1, everywhere, 100), lambda x: x.scatter(-1, everywhere, value=100),
    )  # fmt: skip
    for fill in fills:
        net = Layer(lambda x, fill=fill: fill(x) @ torch.full((8, 1), 1 / 16))
        with emulate(net, COARSE):  # the largest number is 127 / 16
            assert torch.equal(net(X), torch.full((5, 4, 9, 1), 8 * 127 / 256).mul(16).round() / 16)


def test_statistics_begun_under_inference_mode_go_on_in_training() -> None:
    net = nn.Linear(4, 4)
    with emulate(net, COARSE) as emulator:
        with torch.inference_mode():
            net(torch.rand(3, 4))
        net(torch.rand(3, 4)).sum().backward()
    assert emulator.counts["activations"][""].elements == 2 * (12 + 12)


def test_double_precision_stays_so() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Softmax(-1), nn.Linear(8, 2)).double()
    with emulate(net, COARSE):
        out = net(torch.rand(9, 4).double())
    out.sum().backward()
    assert out.dtype == net[0].weight.grad.dtype == torch.float64
    assert on_grid(out)


def test_a_module_left_in_float() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.GELU())
    with emulate(net, Emulation({"1": None, "*": "<4,4>"}, rounding="nearest")):
        assert not on_grid(net(torch.rand(9, 4)))
    assert str(Emulation({"1": None, "*": "<4,4>"})).startswith("activations 1: float32, *: <4,4>")


@pytest.mark.parametrize("grad", [True, False])
def test_evaluation_takes_no_fast_path(grad: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    with torch.set_grad_enabled(grad), emulate(net, COARSE):
        assert on_grid(net(torch.randn(3, 7, 16)))
    assert torch.backends.mha.get_fastpath_enabled()


def test_reentrant_checkpoints_are_rounded_again_alike() -> None:
    blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2)])

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.blocks, self.again = nn.Linear(8, 8), blocks, False

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=True) if self.again else block(x)
            return x

    net = Network()
    again: list[Tensor] = []
    net.blocks[0].register_forward_hook(lambda module, args, out: again.append(out.detach()))
    for net.again in (False, True):
        with emulate(net, Emulation("<4,6>"), step=5):
            net(torch.ones(6, 8)).sum().backward()
    assert len(again) == 3  # plainly, before the backward pass, and in it
    assert torch.equal(again[0], again[1])
    assert torch.equal(again[1], again[2])


def test_functional_calls_and_computed_weights() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), weight_norm(nn.Linear(16, 4)))
    with emulate(net, COARSE):
        out = functional_call(net, {name: 2 * param for name, param in net.named_parameters()}, (torch.rand(3, 8),))
        assert on_grid(out)
    out.sum().backward()
    assert all(param.grad is not None for param in net.parameters())


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2.03

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> Tensor:  # type: ignore[override]
        return error * 2.03


def test_functions_with_a_backward_of_their_own() -> None:
    net = Rounds(Doubled.apply)
    with emulate(net, COARSE), keep_activations(net, 8):
        out = net(X)
    out.sum().backward()
    assert on_grid(out)
    assert on_grid(net.layer.bias.grad)


def test_second_derivatives_are_refused() -> None:
    net = nn.Linear(4, 1)
    x = torch.rand(3, 4, requires_grad=True)
    with emulate(net, COARSE):
        out = net(x)
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


def test_an_interrupt_leaves_nothing_behind() -> None:
    class Interrupted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    net = nn.Sequential(Interrupted())
    with pytest.raises(KeyboardInterrupt), emulate(net, COARSE), keep_activations(net, 8):
        net(torch.rand(1, 2))
    assert not torch.overrides._get_current_function_mode_stack()
    assert not on_grid(nn.Linear(2, 2)(torch.rand(9, 2)))
    with emulate(net, COARSE):
        assert on_grid(net[0].layer(torch.rand(9, 2)))


def test_a_module_that_fails_inside_and_is_caught() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("as asked")

    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.other = nn.Linear(4, 4), Fails(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            with pytest.raises(RuntimeError):
                self.second(x)
            return self.other(x)

    net = Catches()
    with emulate(net, COARSE) as emulator:
        assert on_grid(net(torch.rand(3, 4)))
    assert emulator.counts["activations"]["other"].elements == 12


def test_what_cannot_be_seen_is_refused() -> None:
    net = nn.Linear(4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out
        scripted = torch.jit.trace(net, torch.rand(1, 4))
    with pytest.raises(ValueError, match="is TorchScript, whose operations cannot be seen"):
        emulate(nn.Sequential(scripted), COARSE).__enter__()
    parallel = nn.DataParallel(net)
    parallel.device_ids = [0, 1]
    with pytest.raises(ValueError, match="is a DataParallel, whose copies run in threads"):
        emulate(parallel, COARSE).__enter__()


def test_outputs_can_be_saved() -> None:
    net = nn.Linear(4, 4)
    with torch.no_grad(), emulate(net, COARSE):
        out = net(torch.rand(3, 4))
    file = io.BytesIO()
    torch.save(out, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), out)


def test_nothing_is_held_after_a_step() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    optim.quantize_(net, FixedPointFormat(16, 12))

    def step(index: int) -> None:
        with emulate(net, Emulation("<4,12>", accumulate="exact"), step=index), keep_activations(net, 8, step=index):
            net(torch.rand(512, 4)).sum().backward()

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(each), Tensor) for each in gc.get_objects())

    step(0)
    before = alive()
    for index in range(20):
        step(index)
    assert alive() == before


def test_an_unpadded_image_and_a_large_padding_are_counted_in_full() -> None:
    net = nn.Conv2d(1, 1, 1, padding=300, bias=False)
    optim.quantize_(net, FixedPointFormat(24, 12))
    exact = Emulation("<4,4>", accumulate="exact")
    for shape in ((1, 4, 4), (1, 1, 4, 4)):  # 604 * 604 products in the weight's gradient
        wide = Emulation("<12,12>", accumulate="exact")
        with emulate(net, exact):
            net(torch.rand(shape))
        with emulate(net, wide), pytest.raises(ValueError, match="sums 364816 products of 46 bits: 64"):
            net(torch.rand(shape))


def test_a_bias_has_bits_of_its_own() -> None:
    net = nn.Linear(16, 2)
    optim.quantize_(net, FixedPointFormat(24, 20), keep_float=["bias"])
    bias = nn.Linear(1, 2)
    optim.quantize_(bias, FixedPointFormat(24, -12))
    net.bias = bias.bias
    with (
        emulate(net, Emulation("<2,20>", accumulate="exact")),
        pytest.raises(ValueError, match="sums 16 products of 44 bits: 75"),
    ):
        net(torch.rand(3, 16))
