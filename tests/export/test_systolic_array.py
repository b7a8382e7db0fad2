"""The cost model: the paper's array, and sums that are done by hand here."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from lowprec_plugin import optim
from lowprec_plugin.export import SystolicArray, estimate
from lowprec_plugin.export.systolic_array import Product
from lowprec_plugin.tasks import CNN, MLP


def test_the_paper() -> None:
    """812 DSPs, 260 G-ops/s at 166 MHz, under 4 % for the rounding. The side follows from the 840 DSPs of the chip."""
    result = estimate(MLP(784, (1000, 1000)), (1, 28, 28), batch_size=100, word_length=16)
    assert (result.side, result.per_unit, result.per_column) == (28, 1, 1)
    assert result.dsps == 28 * 28 + 28 == 812
    assert round(result.peak / 1e9) == 260
    assert result.side * result.per_column / (result.side**2 * result.per_unit) < 0.04
    assert "ESTIMATE" in str(result)
    assert "784 + 28 for rounding = 812 of 840 DSPs" in str(result)
    assert "260.3 G-ops/s at 166 MHz" in str(result)


def test_the_documented_table() -> None:
    docs = (Path(__file__).parent.parent.parent / "docs" / "export.md").read_text()
    assert str(estimate(CNN(), (1, 28, 28), batch_size=100, word_length=16)) in docs


def test_one_layer_by_hand() -> None:
    """100 x 784 times 784 x 1000: 4 x 36 tiles of 28, each 784 cycles, and 82 to fill and drain."""
    result = estimate(nn.Linear(784, 1000), (784,), batch_size=100, word_length=16)
    assert result.cycles == 4 * 36 * 784 + 82
    assert result.operations == 2 * 100 * 784 * 1000
    assert result.seconds == pytest.approx(result.cycles / 166e6)
    assert result.efficiency == pytest.approx(100 * 1000 / (4 * 28 * 36 * 28), rel=0.001)
    assert result.rate == pytest.approx(result.efficiency * 2 * 784 * 166e6)


def test_a_convolution_by_hand() -> None:
    """Patches of 2 x 3 x 3 at 5 x 6 places of 4 images, in each of two groups; columns that fill 3 of 28."""
    result = estimate(nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 6), batch_size=4, word_length=16)
    (product,) = result.products
    assert product == Product("", "forward", 4 * 5 * 6, 2 * 3 * 3, 3, 2)
    assert result.cycles == 2 * (5 * 1 * 28 + 82)  # 18 terms, but a tile's sums leave in 28 cycles


def test_training() -> None:
    result = estimate(CNN(), (1, 28, 28), batch_size=100, word_length=16, training=True)
    kinds = [(product.layer, product.kind) for product in result.products]
    assert kinds[:2] == [("0", "forward"), ("0", "gradient")]
    assert kinds[2:5] == [("3", "forward"), ("3", "error"), ("3", "gradient")]
    forward, error, gradient = result.products[2:5]
    assert (forward.rows, forward.inner, forward.columns) == (100 * 8 * 8, 8 * 5 * 5, 16)
    assert (error.rows, error.inner, error.columns) == (6400, 16, 200)
    assert (gradient.rows, gradient.inner, gradient.columns) == (200, 6400, 16)
    first_layer_forward = result.products[0].operations
    forwards = sum(product.operations for product in result.products if product.kind == "forward")
    assert result.operations == 3 * forwards - first_layer_forward


@pytest.mark.parametrize(
    ("weights", "activations", "multiplier", "per_unit"),
    [
        (16, 16, (18, 18), 1), (18, 18, (18, 18), 1), (19, 16, (18, 18), 2), (16, 24, (18, 18), 2),
        (24, 24, (18, 18), 4), (24, 24, (25, 18), 2), (24, 16, (25, 18), 1), (16, 24, (25, 18), 1),
    ],
)  # fmt: skip
def test_wide_words(weights: int, activations: int, multiplier: tuple[int, int], per_unit: int) -> None:
    assert SystolicArray(multiplier=multiplier).multipliers(weights, activations) == per_unit


def test_24_bits_make_a_smaller_array() -> None:
    """Four multipliers, and a second accumulator where 47 bits of a product leave one of 48 no room for sums."""
    narrow, wide = (estimate(CNN(), (1, 28, 28), batch_size=100, word_length=bits) for bits in (16, 24))
    assert (wide.per_unit, wide.per_column) == (4 + 1, 2)
    assert wide.side == 12  # 12 * (12 * 5 + 2) = 744, 13 * (13 * 5 + 2) = 871
    assert wide.dsps == 744
    assert wide.peak < narrow.peak / 4
    assert SystolicArray().adders(18, 18, 8192) == 1
    assert SystolicArray().adders(18, 18, 8193) == 2


@given(st.integers(1, 5000), st.integers(1, 9), st.integers(1, 3))
def test_the_side_is_the_largest_that_fits(dsps: int, per_unit: int, per_column: int) -> None:
    array = SystolicArray(dsps)

    def needed(side: int) -> int:
        return side * (side * per_unit + per_column)

    if needed(1) > dsps:
        with pytest.raises(ValueError, match=f"dsps={dsps} is less than the {per_unit + per_column} of one unit"):
            array.side(per_unit, per_column)
    else:
        side = array.side(per_unit, per_column)
        assert needed(side) <= dsps < needed(side + 1)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 500), st.integers(1, 40))
def test_no_product_beats_the_peak(rows: int, inner: int, columns: int, side: int) -> None:
    product = Product("", "forward", rows, inner, columns)
    assert product.operations <= 2 * side**2 * product.cycles(side)


def test_formats_of_the_module_and_what_is_not_counted() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x.long()))

    net = Network().train()
    net.embedding.eval()
    with pytest.raises(ValueError, match="the module is in float, and has no word length of its own"):
        estimate(net, (5,), batch_size=2)
    optim.quantize_(net, "fixed20")
    result = estimate(net, (5,), batch_size=2)
    assert (result.word_length, result.activation_word_length) == (20, 20)
    assert result.uncounted == ("embedding",)
    assert "not counted: embedding" in str(result)
    net.register_parameter("table", nn.Parameter(torch.ones(2, 2)))
    assert "not counted: parameters of no layer, embedding" in str(estimate(net, (5,), word_length=16))
    assert [module.training for module in net.modules()] == [True, False, True]
    assert not any(module._forward_hooks for module in net.modules())


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"does not take a batch of shape \(2, 5\)"):
        estimate(nn.Linear(4, 2), (5,), batch_size=2, word_length=16)
    with pytest.raises(ValueError, match=r"does not take a batch of shape \(1, 4\): .* positional argument"):
        estimate(nn.Bilinear(4, 4, 2), (4,), word_length=16)
    with pytest.raises(ValueError, match="dsps=-5 is less than the 2 of one unit and its rounding"):
        estimate(nn.Linear(4, 2), (4,), word_length=16, array=SystolicArray(-5))
    with pytest.raises(ValueError, match=r"input_shape=\(4, -4\) of one example has a size below 1"):
        estimate(nn.Linear(4, 2), (4, -4), word_length=16)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        estimate(nn.Linear(4, 2), (4,), batch_size=0, word_length=16)
    with pytest.raises(ValueError, match="clock_hz=-1 must be above 0"):
        SystolicArray(clock_hz=-1)
    with pytest.raises(ValueError, match="word_length=30 is not supported"):
        estimate(nn.Linear(4, 2), (4,), word_length=30)
    with pytest.raises(ValueError, match="ReLU ran no Linear and no convolution"):
        estimate(nn.ReLU(), (4,), word_length=16)
    assert torch.is_grad_enabled()
