"""What is emulated and what is not, with which random bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lowprec_plugin import FixedPointFormat, optim
from lowprec_plugin.activations.emulation import Emulation, emulate

COARSE = Emulation("<4,4>", rounding="nearest")


def on_grid(x: Tensor, fraction: int = 4) -> bool:
    return bool((x * 2.0**fraction == (x * 2.0**fraction).round()).all())


class Rounds(nn.Module):
    """One operation on the output of a layer, whose input's error is looked at."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        self.before = self.layer(x)
        self.before.retain_grad()
        return self.operation(self.before)


OPERATIONS = {
    "avg_pool": lambda x: functional.avg_pool2d(x, 3),
    "adaptive": nn.AdaptiveAvgPool2d(3),
    "batch norm": nn.BatchNorm2d(4),
    "group norm": nn.GroupNorm(2, 4),
    "layer norm": lambda x: functional.layer_norm(x, x.shape[1:]),
    "rms norm": nn.RMSNorm(8),
    "gelu": functional.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": lambda x: x.tanh(),
    "sigmoid by name": lambda x: torch.sigmoid(input=x),
    "softmax": lambda x: x.softmax(-1),
    "softmax in float64": lambda x: torch.softmax(x, -1, torch.float64).float(),
    "silu": nn.SiLU(),
    "residual": lambda x: x + 0.3 * x,
    "product": lambda x: x * x,
    "power": lambda x: x**3,
    "right": lambda x: 1.1 - x,
    "mean": lambda x: x.mean((2, 3)),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "matmul": lambda x: x @ x.transpose(-2, -1),
    "in place": lambda x: (x * 1.0).mul_(0.3),
    "augmented": lambda x: _augmented(x),
    "method in place": lambda x: (x * 1.0).add_(0.01),
    "interpolate": lambda x: functional.interpolate(x, scale_factor=1.5, mode="bilinear"),
    "attention": lambda x: functional.scaled_dot_product_attention(x, x, x),
    "dropout": lambda x: functional.dropout(x, 0.3),
    "transposed": nn.ConvTranspose2d(4, 2, 3),
}


def _augmented(x: Tensor) -> Tensor:
    x = x * 1.0
    x += 0.01
    return x


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_result_is_rounded(name: str) -> None:
    net = Rounds(OPERATIONS[name])
    x = torch.randn(5, 4, 9, 8)
    with emulate(net, COARSE) as emulator:
        out = net(x)
    assert on_grid(out)
    assert on_grid(net.before)
    out.backward(torch.randn_like(out))
    assert on_grid(net.layer.bias.grad)  # the sum of the layer's errors
    assert net.layer.bias.grad.abs().sum() > 0
    assert emulator.counts["errors"]["layer"].elements == net.before.numel()
    net.zero_grad()
    unrounded = net(x)
    unrounded.backward(torch.randn_like(unrounded))
    assert not on_grid(unrounded)  # outside the context nothing is
    assert not on_grid(net.layer.bias.grad)


SELECTIONS = {
    "relu": functional.relu,
    "max_pool": lambda x: functional.max_pool2d(x, 2),
    "flatten": lambda x: x.flatten(1),
    "pieces": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "index": lambda x: x[:, 1:, ::2],
    "clamp at zero": lambda x: torch.maximum(x, torch.zeros_like(x)),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections_are_not_rounded_again(name: str) -> None:
    net = Rounds(SELECTIONS[name])
    with emulate(net, COARSE) as emulator:
        out = net(torch.randn(5, 4, 9, 8))
    assert on_grid(out)
    assert list(emulator.counts["activations"]) == ["layer"] or emulator.counts["activations"][""].elements == 0


def test_what_is_around_the_network_is_not_emulated() -> None:
    net, around = nn.Linear(4, 3), nn.GELU()
    root = nn.ModuleDict({"net": net, "around": around})
    with emulate(root, COARSE):
        out = net(torch.randn(7, 4))
        loss = functional.cross_entropy(out, torch.zeros(7, dtype=torch.long), reduction="none")
        outside = around(out)
        stranger = nn.Linear(3, 3)(out)
    assert on_grid(out)
    assert not any(on_grid(x) for x in (loss, outside, stranger))


@pytest.mark.parametrize("operation", [functional.gelu, nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True))])
def test_errors_alone_and_activations_alone(operation: Any) -> None:
    net = Rounds(operation)
    x = torch.randn(5, 4, 9, 8)
    for activations, errors in ((None, "<4,4>"), ("<4,4>", None)):
        with emulate(net, Emulation(activations, errors, rounding="nearest")):
            out = net(x)
        out.backward(torch.randn_like(out))
        assert on_grid(out) == (activations is not None)
        assert on_grid(net.layer.bias.grad) == (errors is not None)
        net.zero_grad()


def test_formats_by_module() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))
    formats = {"2": "<4,2>", "*": "<4,6>"}
    seen: dict[str, Tensor] = {}
    net[1].register_forward_hook(lambda module, args, out: seen.update(hidden=out))
    with emulate(net, Emulation(formats, rounding="nearest")):
        out = net(torch.randn(50, 4))
    assert on_grid(out, 2)
    assert on_grid(seen["hidden"], 6)
    assert not on_grid(seen["hidden"], 2)
    with emulate(net, Emulation({"0": "<4,4>"}, rounding="nearest")):
        assert not on_grid(net(torch.randn(50, 4)), 6)


def test_the_same_bits_for_the_same_step_and_others_else() -> None:
    net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))
    x = torch.randn(9, 16)

    def run(**options: Any) -> tuple[Tensor, Tensor]:
        net.zero_grad()
        with emulate(net, Emulation("<4,4>"), **options):
            out = net(x)
        out.square().sum().backward()
        return out.detach(), net[0].weight.grad.clone()

    first = run(step=3)
    assert all(torch.equal(a, b) for a, b in zip(first, run(step=3), strict=True))
    for other in ({"step": 4}, {"step": 3, "seed": 1}, {"step": 3, "rank": 1}, {"step": 3, "training": False}):
        assert not any(torch.equal(a, b) for a, b in zip(first, run(**other), strict=True))


def test_stochastic_rounding_is_unbiased() -> None:
    net = nn.Sequential(nn.Linear(3, 4))
    x, weight = torch.randn(2, 3), torch.randn(2, 4)
    with emulate(net, Emulation("<4,16>", rounding="nearest")):  # the input is rounded too, here to 16 bits
        expected = net(x.clone())
    total, square, steps = torch.zeros(2, 4), torch.zeros(2, 4), 4000
    gradients = torch.zeros(4)
    for step in range(steps):
        net.zero_grad()
        with emulate(net, Emulation({"0": "<6,3>"}), step=step):
            out = net(x)
        out.backward(weight)
        total += out.detach()
        square += (out.detach() - expected.detach()).square()
        gradients += net[0].bias.grad
    spread = (square / steps).sqrt() / steps**0.5
    assert bool(((total / steps - expected).abs() < 4 * spread + 1e-3).all())
    assert bool(((gradients / steps - weight.sum(0)).abs() < 4 * 2**-3 / (2 * steps**0.5) * 2**0.5).all())


def test_checkpointed_modules_are_rounded_again_alike() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(functional.gelu(self.up(x)))

    class Network(nn.Module):
        def __init__(self, again: bool, shared: bool = False) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block() for _ in range(1 if shared else 3)])
            self.again, self.times = again, 2 if shared else 1

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                for _ in range(self.times):
                    x = checkpoint(block, x, use_reentrant=False) if self.again else block(x)
            return x

    plain, again = Network(False), Network(True)
    again.load_state_dict(plain.state_dict())
    x = torch.randn(6, 8)
    for net in (plain, again):
        with emulate(net, Emulation("<4,6>"), step=5):
            net(x).square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), again.parameters(), strict=True))
    shared = Network(True, shared=True)
    with emulate(shared, Emulation("<4,6>")), pytest.raises(ValueError, match=r"'blocks\.0' ran 2 times in this step"):
        shared(x).sum().backward()


def test_scalars_are_left_alone() -> None:
    for operation in (torch.tanh, torch.sigmoid, torch.exp):
        net = nn.Linear(1, 1)
        net.register_parameter("gate", nn.Parameter(torch.tensor(0.37)))
        seen: list[Tensor] = []
        net.register_forward_pre_hook(lambda module, args, f=operation, seen=seen: seen.append(f(module.gate)))
        with emulate(net, COARSE):
            net(torch.rand(1, 1))
        seen[0].backward()
        gradient, net.gate.grad = net.gate.grad, None
        operation(net.gate).backward()
        assert torch.equal(seen[0], operation(net.gate))
        assert torch.equal(gradient, net.gate.grad)


def test_statistics_are_left_alone() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    x = torch.randn(64, 4)
    with emulate(net, COARSE):
        net(x)
    assert not on_grid(net[1].running_mean)


def test_counts_saturation_by_module() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6))
    with torch.no_grad():
        net[1].weight.mul_(100)
    with emulate(net, Emulation("<3,5>")) as emulator:
        net(torch.rand(64, 4)).sum().backward()
    shares = emulator.saturated()["activations"]
    assert shares["0"] == 0
    assert shares["1"] > 0.5


def test_what_cannot_be_emulated_is_refused() -> None:
    x = torch.randn(3, 5, 8)
    with emulate(net := nn.LSTM(8, 4), COARSE), pytest.raises(ValueError, match="'lstm' computes in one piece"):
        net(x)
    with emulate(net, Emulation(None)):
        assert torch.equal(net(x)[0], nn.LSTM.forward(net, x)[0])  # left in float
    (inside := nn.Linear(8, 8)).compile()
    for compiled in (torch.compile(nn.Linear(8, 8)), nn.Sequential(inside)):
        with pytest.raises(ValueError, match=r"is compiled, and .* leave torch.compile out"):
            emulate(compiled, COARSE).__enter__()
    with (
        emulate(net := nn.Linear(8, 4).bfloat16(), COARSE),
        pytest.raises(ValueError, match=r"emulation works on float32, and 'input' .* gave torch\.bfloat16"),
    ):
        net(x.bfloat16())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activations": "<4>"}, "'<4>' is not a fixed-point format"),
        ({"activations": {}}, r"activations=\{\} names no format"),
        ({"rounding": "up"}, "rounding='up' is not one of"),
        ({"error_rounding": "up"}, "rounding='up' is not one of"),
        ({"accumulate": "int"}, "accumulate='int' is not one of"),
        ({"accumulate": "exact"}, "'fixed16' has a radix point per block"),
        ({"activations": "fixed8^2"}, r"activations='fixed8\^2' is for squares alone.*: write 'fixed8'"),
        ({"errors": {"*": "fixed8:64^2"}}, r"errors='fixed8:64\^2' is for squares alone.*: write 'fixed8:64'"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Emulation(**arguments)


def test_settings_that_would_do_nothing_are_refused() -> None:
    net = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    typed = {"haed": None, "*": "<4,4>"}
    for emulation, kind in ((Emulation(typed, None), "activations"), (Emulation("<4,4>", typed), "errors")):
        with pytest.raises(ValueError, match=rf"{kind}=\{{'haed': ...\}} matches no module; there are body, head"):
            emulate(net, emulation).__enter__()
    with pytest.raises(ValueError, match=r"emulation='<4,4>' is not an Emulation: write Emulation\('<4,4>'\)"):
        emulate(net, "<4,4>").__enter__()  # type: ignore[arg-type]


def test_an_error_inside_leaves_nothing_behind() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("as asked")

    net = Fails()
    with emulate(net, COARSE):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="as asked"):
                net(torch.rand(1, 2))
            assert not on_grid(torch.rand(100) + 1)
        assert on_grid(net.layer(torch.rand(9, 2)))
    assert not torch.overrides._get_current_function_mode_stack()


def test_parameters_in_fixed_point() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optim.quantize_(net, FixedPointFormat(16, 12))
    optimizer = optim.SGD(net.parameters(), lr=0.5)
    x = torch.randn(64, 8)
    y = (x[:, 0] > 0).long()
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        with emulate(net, Emulation("<4,12>", accumulate="exact"), step=step):
            loss = functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
