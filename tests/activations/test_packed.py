"""Activations kept for the backward pass in codes: what is packed, what is not, what comes back, what it costs."""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lowprec_plugin import emulate, keep_activations, optim
from lowprec_plugin.activations.emulation import Emulation
from lowprec_plugin.bench.models import Transformer

WIDTH = 64


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(functional.gelu(self.up(self.norm(x))))


class Network(nn.Module):
    def __init__(self, again: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.blocks = nn.Linear(WIDTH, WIDTH), nn.ModuleList([Residual() for _ in range(3)])
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x) if self.again is None else checkpoint(block, x, use_reentrant=self.again)
        return x


X = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1))


def gradients(net: nn.Module, x: Tensor, bits: int | None, **options: Any) -> tuple[Tensor, list[Tensor], Any]:
    net.zero_grad()
    with nullcontext() if bits is None else keep_activations(net, bits, **options) as kept:
        out = net(x)
    (out.square() * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return out.detach(), [param.grad.clone() for param in net.parameters()], None if bits is None else kept.bytes


def error(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest relative distance of two lists of gradients."""
    return max(float((x - y).norm() / y.norm()) for x, y in zip(a, b, strict=True))


def test_forwards_are_as_ever_and_backwards_as_near_as_the_bits() -> None:
    net = Network()
    expected, exact, _ = gradients(net, X, None)
    errors = {}
    for bits in (24, 16, 8, 4):
        out, found, kept = gradients(net, X, bits)
        assert torch.equal(out, expected)
        errors[bits] = error(found, exact)
        assert kept.stored < (-(-bits // 8) / 4 + 0.01) * kept.as_float  # whole bytes
        assert kept.left < 0.05 * kept.as_float
    assert errors[24] < 1e-5 < errors[16] < 1e-3 < errors[8] < 0.05 < errors[4] < 1


def test_gradients_are_unbiased() -> None:
    net = Residual()
    _, exact, _ = gradients(net, X, None)
    _, nearest, _ = gradients(net, X, 4, rounding="nearest")
    steps = 300
    total = [torch.zeros_like(each) for each in exact]
    for step in range(steps):
        for mean, each in zip(total, gradients(net, X, 4, step=step)[1], strict=True):
            mean += each / steps
    # GELU and the norm are not linear in what they keep, and so keep a small bias.
    assert error(total, exact) < 0.3 * error(nearest, exact)


def test_the_same_bits_for_the_same_step() -> None:
    net = Network()
    first = gradients(net, X, 8, step=3)[1]
    assert error(gradients(net, X, 8, step=3)[1], first) == 0
    for options in ({"step": 4}, {"step": 3, "seed": 1}, {"step": 3, "rank": 1}):
        assert error(gradients(net, X, 8, **options)[1], first) > 0


def test_a_tensor_is_stored_once() -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[0](x) + self.layers[1](x) + self.layers[2](x.view(5, 10, WIDTH)).view(50, WIDTH)

    _, _, kept = gradients(Shares(), X, 8)
    assert kept.as_float == X.nbytes


class Keeps(nn.Module):
    """Multiplies a tensor that needs a gradient by another, which autograd so keeps."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.ones(1)), other

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight) * self.other(x)


LEFT = {
    "small": (lambda x: x[:3, :5], torch.rand(3, 5)),
    "expanded": (lambda x: x[:1].detach().expand(1000, 64), torch.rand(1, 64)),
    "infinite": (lambda x: torch.full((50, 64), torch.inf), X),
    "double": (lambda x: x.detach().double(), X),
    "weights": (lambda x: nn.Parameter(torch.ones(50, 64)), X),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_as_it_is(name: str) -> None:
    make, x = LEFT[name]
    other = make(x)
    net = Keeps(lambda x: other)
    with keep_activations(net, 8) as kept:
        net(x)
    first = x.nbytes if x.numel() >= 1024 else 0  # the other factor, which is packed
    assert kept.bytes.as_float in (first, 2 * first)
    if name == "expanded":
        assert kept.bytes.left <= 2 * other.untyped_storage().nbytes() + x.nbytes


def test_frozen_weights_are_left() -> None:
    net = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(3)])
    net[1].requires_grad_(False)
    with keep_activations(net, 8) as kept:
        net(X).sum().backward()
    assert kept.bytes.as_float == 2 * X.nbytes  # what goes into the layers that train


def test_what_is_left_and_changed_in_place_is_refused() -> None:
    """As torch does, whose own check hooks are without."""

    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x).sigmoid()
            y += 1
            return y

    net = Changes()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        net(torch.rand(3, 4)).sum().backward()
    with keep_activations(net, 8):
        out = net(torch.rand(3, 4))
    with pytest.raises(ValueError, match=r"of shape \(3, 4\) that the backward pass needs was changed in place"):
        out.sum().backward()


def test_weights_that_autocast_copies_are_left() -> None:
    net = nn.Linear(WIDTH, WIDTH)
    with torch.autocast("cpu", torch.bfloat16), keep_activations(net, 8) as kept:
        out = net(X)
    assert out.dtype == torch.bfloat16
    assert kept.bytes.as_float == X.nbytes // 2
    out.float().sum().backward()


@pytest.mark.parametrize("again", [False, True])
def test_checkpointing_goes_on_as_it_was(again: bool) -> None:
    plain, checkpointed = Network(), Network(again)
    exact = gradients(plain, X, None)[1]
    _, found, kept = gradients(checkpointed, X, 8)
    assert error(found, exact) < 0.05
    whole = gradients(plain, X, 8)[2]
    assert kept.as_float < 0.5 * whole.as_float  # only what lies between the blocks is kept


def test_dropout_attention_and_fixed_point_parameters() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True)
    optim.quantize_(layer)
    x = torch.randn(4, 20, WIDTH)
    results = []
    for bits in (None, 16):
        torch.manual_seed(1)
        results.append(gradients(layer, x, bits)[1])
    assert error(results[1], results[0]) < 1e-3


def test_with_emulation() -> None:
    net = Network()
    optim.quantize_(net)
    with emulate(net, Emulation("<6,10>"), step=1):
        exact = gradients(net, X, None)[1]
    for bits, most in ((16, 0.0), (8, 0.1)):  # numbers of 16 bits are kept exactly in 16
        with emulate(net, Emulation("<6,10>"), step=1):
            distance = error(gradients(net, X, bits)[1], exact)
        assert distance <= most
        assert (distance == 0) == (bits == 16)


def test_second_derivatives_are_refused() -> None:
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    x = X.clone().requires_grad_()
    with keep_activations(net, 8):
        out = net(x).sum()
    with pytest.raises(ValueError, match="create_graph=True would differentiate wrongly"):
        torch.autograd.grad(out, x, create_graph=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((25,), "word_length=25 is not supported"), ((8, "up"), "rounding='up' is not one of")],
)
def test_bad_settings(arguments: tuple[Any, ...], message: str) -> None:
    options = {"rounding": arguments[1]} if len(arguments) > 1 else {}
    with pytest.raises(ValueError, match=message):
        keep_activations(nn.Linear(2, 2), arguments[0], **options).__enter__()


def bytes_in_use() -> int:
    """Of the C library's allocator, which torch's CPU tensors come from."""

    class Info(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()  # noqa: SIM905
        ]

    library = ctypes.CDLL(None)
    library.mallinfo2.restype = Info
    info = library.mallinfo2()
    return int(info.uordblks + info.hblkhd)


@pytest.fixture
def no_garbage() -> Iterator[None]:
    """What other tests have left is not freed meanwhile."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="counts the bytes of glibc's allocator")
def test_a_transformer_holds_fewer_bytes_and_frees_them_as_it_goes() -> None:
    net = Transformer(WIDTH, 2, 2)
    ids = torch.randint(256, (8, 65))
    held: dict[int | None, int] = {}
    late: list[int] = []
    net.encoder.layers[0].linear1.weight.register_hook(lambda gradient: late.append(bytes_in_use()))
    for bits in (None, None, 16, 8):  # the first for what is made once
        net.zero_grad(set_to_none=False)
        before = bytes_in_use()
        with nullcontext() if bits is None else keep_activations(net, bits) as kept:
            loss = functional.cross_entropy(net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        held[bits] = bytes_in_use() - before
        loss.backward()
        if bits is not None:
            assert late[-1] - before < 0.6 * held[bits]  # by then the second layer's codes are gone
            assert held[bits] == pytest.approx(held[None] - kept.bytes.as_float + kept.bytes.stored, rel=0.1)
    assert held[16] < 0.62 * held[None]
    assert held[8] < 0.42 * held[None]
