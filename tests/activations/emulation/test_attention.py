"""Attention: what is rounded in it, what it gives, and what masks do to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowprec_plugin import optim
from lowprec_plugin.activations.emulation import Emulation, emulate
from tests.activations.emulation.test_emulate import COARSE, Rounds, on_grid

#: So fine that emulation is float32 but for the order of sums.
FINE = Emulation("fixed24", rounding="nearest")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shown", [{"need_weights": False}, {}, {"average_attn_weights": False}], ids=str)
def test_multi_head_attention_is_attention(shown: dict[str, bool], masked: bool) -> None:
    torch.manual_seed(1)
    layer = nn.MultiheadAttention(16, 4, batch_first=True)
    x, memory = torch.randn(3, 7, 16), torch.randn(3, 9, 16)
    masks: dict[str, Any] = {}
    if masked:
        masks = {
            "attn_mask": torch.rand(7, 9) > 0.7,
            "key_padding_mask": torch.arange(9).expand(3, 9) > torch.tensor([[8], [5], [6]]),
        }
    for given in ((x, memory, memory, masks), (x[0], memory[0], memory[0], {})):
        expected = layer(*given[:3], **given[3], **shown)
        with emulate(layer, FINE):
            found = layer(*given[:3], **given[3], **shown)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with emulate(layer, COARSE):
        out, weights = layer(x, memory, memory, **masks, **shown)
    assert on_grid(out)
    assert weights is None or on_grid(weights)


def test_attention_is_attention() -> None:
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    for options in ({"is_causal": True}, {"scale": 0.2}, {"attn_mask": torch.randn(5, 6)}):
        net = Rounds(lambda _: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options))  # noqa: B023
        with emulate(net, FINE):
            out = net(torch.randn(1, 4, 2, 2))
        expected = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["<4,8>", "fixed12"])
@pytest.mark.parametrize("hides", [-1e4, torch.finfo(torch.float32).min])
def test_masks_are_no_numbers_of_the_network(format: str, hides: float) -> None:
    q, k, v = (torch.randn(2, 6, 8, requires_grad=True) for _ in range(3))
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    bias = torch.randn(6, 6)
    results = []
    for value in (-torch.inf, hides):
        mask = bias.masked_fill(~seen, value)
        net = Rounds(lambda _, mask=mask: functional.scaled_dot_product_attention(q, k, v, mask))
        with emulate(net, Emulation(format)):
            out = net(torch.zeros(1, 4, 2, 2))
        results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    net = Rounds(lambda _: functional.scaled_dot_product_attention(q, k, v, torch.full((6, 6), hides)))
    with emulate(net, Emulation(None)):
        torch.testing.assert_close(net(torch.zeros(1, 4, 2, 2)), v.mean(1, keepdim=True).expand(2, 6, 8))


def test_a_query_that_sees_nothing_gets_zeros() -> None:
    """As torch's attention gives it: a padded image, say."""
    q, k, v = (torch.randn(2, 6, 8, requires_grad=True) for _ in range(3))
    seen = torch.ones(6, 6, dtype=torch.bool)
    seen[2] = False
    for mask in (seen, torch.zeros(6, 6).masked_fill(~seen, -torch.inf)):
        net = Rounds(lambda _, mask=mask: functional.scaled_dot_product_attention(q, k, v, mask))
        with emulate(net, FINE):
            out = net(torch.zeros(1, 4, 2, 2))
        torch.testing.assert_close(out, functional.scaled_dot_product_attention(q, k, v, mask), rtol=1e-4, atol=1e-5)
        assert all(bool(each.isfinite().all()) for each in torch.autograd.grad(out.square().sum(), (q, k, v)))
    layer = nn.MultiheadAttention(16, 4, batch_first=True)
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [True] * 5])
    with emulate(layer, COARSE):
        assert bool(layer(x, x, x, key_padding_mask=padding, need_weights=False)[0].isfinite().all())


class Grouped(nn.Module):
    """Four heads of queries to one of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (-1, 4)).transpose(1, 2) for each in self.layer(x).split((16, 4, 4), -1))
        return functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def test_keys_and_values_are_rounded_once() -> None:
    net = Grouped()
    for rounding in ("nearest", "stochastic"):
        with emulate(net, Emulation("fixed8", rounding=rounding)) as emulator:
            net(torch.randn(2, 6, 8))
        # What enters, the layer, the scores and their softmax, and the result.
        assert emulator.counts["activations"][""].elements == 2 * (2 * 4 * 6 * 6) + 2 * 4 * 6 * 4
        assert emulator.counts["activations"]["layer"].elements == 2 * 6 * 8 + 2 * 6 * 24


def test_weights_in_float_stay_as_they_are() -> None:
    layer = nn.MultiheadAttention(16, 4)
    x = torch.randn(5, 3, 16).mul(16).round() / 16
    with emulate(layer, COARSE) as emulator:
        layer(x, x, x, need_weights=False)
    kept = emulator.counts["activations"][""].elements
    optim.quantize_(layer, "fixed24")
    with emulate(layer, COARSE) as emulator:
        layer(x, x, x, need_weights=False)
    assert emulator.counts["activations"][""].elements == kept


def test_a_transformer_layer_trains_as_in_float32_with_fine_formats() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, activation="gelu")
    x, weight = torch.randn(3, 7, 16), torch.randn(3, 7, 16)
    (layer(x) * weight).sum().backward()
    expected = [param.grad.clone() for param in layer.parameters()]
    layer.zero_grad()
    with emulate(layer, FINE):
        (layer(x) * weight).sum().backward()
    for param, gradient in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(param.grad, gradient, rtol=1e-3, atol=2e-4)
