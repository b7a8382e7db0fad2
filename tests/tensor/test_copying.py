"""What is copied or assigned is exact where it can be, and else rounded once, as the target rounds."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowprec_plugin import FixedPointTensor
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.tensor.copying import exchange_codes
from tests import cases


def same_planes(one: FixedPointTensor, other: FixedPointTensor) -> bool:
    pairs = zip(one.blocks.planes, other.blocks.planes, strict=True)
    return one.format == other.format and all(torch.equal(a, b) for a, b in pairs)


def quantized(x: Tensor, format: FixedPointFormat | str, **options: str) -> FixedPointTensor:
    return FixedPointTensor.quantize(x, format, label="w", **options)


def assign(target: FixedPointTensor, floats: Tensor) -> None:
    target.data = floats


def load(target: FixedPointTensor, floats: Tensor) -> None:
    holder = nn.Module()
    holder.weight = nn.Parameter(target)
    holder.load_state_dict({"weight": floats})


WAYS: dict[str, Callable[[FixedPointTensor, Tensor], object]] = {
    "copy_": lambda target, floats: target.copy_(floats),
    "data.copy_": lambda target, floats: target.data.copy_(floats),
    "data =": assign,
    "load_state_dict": load,
    "view(-1)": lambda target, floats: target.view(-1).copy_(floats.view(-1)),
    "t()": lambda target, floats: target.t().copy_(floats.t()),
    "rows": lambda target, floats: [target[row].copy_(floats[row]) for row in range(len(floats))],
    "slices": lambda target, floats: [part.copy_(x) for part, x in zip(target.split(2), floats.split(2), strict=True)],
    "float64": lambda target, floats: target.copy_(floats.double()),
    "foreach": lambda target, floats: torch._foreach_copy_([target], [floats]),
    "quantize_": lambda target, floats: target.copy_(quantized(floats, target.format)),
}


@pytest.mark.parametrize("way", WAYS)
@given(st.sampled_from(cases.formats()), st.sampled_from(["stochastic", "nearest"]), st.integers(0, 1000))
def test_stored_numbers_come_back_as_they_were(way: str, format: FixedPointFormat, rounding: str, seed: int) -> None:
    """As floats, into a tensor that held something else: every number, and where it shows them, every code."""
    x = cases.floats((7, 150), seed, format.squared)
    stored = quantized(x, format, rounding=rounding)
    other = quantized(cases.floats((7, 150), seed + 1, format.squared), format, rounding=rounding)
    WAYS[way](other, stored.dequantize())
    assert torch.equal(other.dequantize(), stored.dequantize())
    if way not in ("rows", "t()"):
        assert same_planes(other, stored)


@pytest.mark.parametrize("word_length", range(2, 17))
@pytest.mark.parametrize("kind", ["dynamic", "squared", "static"])
@pytest.mark.parametrize("seed", range(3))
def test_every_code_of_every_format_stays(word_length: int, kind: str, seed: int) -> None:
    """All codes of a word length, at several exponents, whatever the random bits."""
    format = FixedPointFormat(word_length, word_length - 3 if kind == "static" else None, 64, kind == "squared")
    least = 0 if format.squared else format.min_code
    code = torch.arange(least, format.max_code + 1, dtype=torch.float64)
    value = code * 2.0 ** (3 - word_length)
    rows = [value * scale for scale in ((1,) if kind == "static" else (2.0**-40, 1.0, 2.0**50))]
    floats = torch.stack([row.square() if format.squared else row for row in rows]).float()
    stored = FixedPointTensor.quantize(floats, format, rounding="nearest")
    stored.rounding, stored.stream = "stochastic", seed
    before = copy.deepcopy(stored)
    assert format.dynamic or torch.equal(stored.dequantize(), floats)
    for way in ("copy_", "data ="):
        WAYS[way](stored, before.dequantize())
        assert same_planes(stored, before)


@given(st.integers(2, 24), st.integers(0, 22), st.sampled_from(["dynamic", "static"]), st.integers(0, 1000))
def test_a_wider_format_takes_every_number(bits: int, more: int, kind: str, seed: int) -> None:
    wide = min(24, bits + more)
    narrow = FixedPointFormat(bits, bits - 3 if kind == "static" else None)
    x = cases.floats((7, 300), seed)
    source, target = quantized(x, narrow), quantized(torch.ones(7, 300), FixedPointFormat(wide, None))
    if kind == "static":
        target = quantized(torch.ones(7, 300), FixedPointFormat(wide, wide - 3))
    target.copy_(source)
    assert torch.equal(target.dequantize(), source.dequantize())


@given(
    st.sampled_from(cases.formats((3, 8, 12, 16, 20))), st.sampled_from(["stochastic", "nearest"]), st.integers(0, 99)
)
def test_a_narrower_format_rounds_as_it_rounds_floats(format: FixedPointFormat, rounding: str, seed: int) -> None:
    x = cases.floats((7, 300), seed, format.squared)
    source = quantized(x, FixedPointFormat(24, None, format.block_size, format.squared))
    one, other = (quantized(torch.ones(7, 300), format, rounding=rounding) for _ in range(2))
    one.copy_(source)
    other.copy_(source.dequantize())
    assert same_planes(one, other)
    nearest = quantized(source.dequantize(), format, rounding="nearest")
    assert rounding == "stochastic" or same_planes(one, nearest)


def test_other_blocks_of_one_format_are_rounded() -> None:
    x = torch.randn(8, 300)
    source, target = quantized(x, "fixed16"), quantized(torch.zeros(300, 8), "fixed16")
    target.copy_(source.t())
    torch.testing.assert_close(target.dequantize(), source.dequantize().t(), rtol=0, atol=2.0**-12)
    target.data = source.t()
    assert target.shape == (300, 8)
    torch.testing.assert_close(target.dequantize(), source.dequantize().t(), rtol=0, atol=2.0**-12)


def test_to_nearest_is_to_the_nearest() -> None:
    x, target = torch.randn(8, 300), quantized(torch.zeros(8, 300), "fixed8", rounding="nearest")
    nearest = quantized(x, "fixed8", rounding="nearest")
    for way in ("copy_", "data =", "load_state_dict", "data.copy_"):
        target.zero_()
        WAYS[way](target, x)
        assert same_planes(target, nearest)


def test_a_copy_takes_the_count_of_roundings_and_an_assignment_does_not_lose_it() -> None:
    one, other = quantized(torch.ones(4, 8), "fixed16"), quantized(torch.ones(4, 8), "fixed16")
    one.mul_(0.3).mul_(0.3)
    other.copy_(one)
    assert other.roundings == one.roundings == 2
    other.data = quantized(torch.ones(4, 8), "fixed16")
    assert other.roundings == 2
    other.data = torch.rand(4, 8)
    assert other.roundings == 3
    one.data = other
    assert one.roundings == 3


def test_two_modules_exchange_their_data() -> None:
    one, other = quantized(torch.rand(4, 8), "fixed16"), quantized(torch.rand(4, 8), "fixed12")
    values = one.dequantize(), other.dequantize()
    one.data, other.data = other.data, one.data
    assert torch.equal(one.dequantize(), values[1])
    assert torch.equal(other.dequantize(), values[0])
    assert (str(one.format), str(other.format)) == ("fixed12", "fixed16")
    one.zero_()
    assert torch.equal(other.dequantize(), values[0])


@pytest.mark.parametrize("way", ["copy_", "data =", "data.copy_", "view(-1)", "float64"])
@pytest.mark.parametrize("bad", [torch.nan, -1.0])
def test_what_cannot_be_stored_changes_nothing(way: str, bad: float) -> None:
    target = quantized(torch.rand(4, 8), "fixed8^2")
    before = copy.deepcopy(target)
    with pytest.raises(ValueError, match=r"tensor 'w' is left as it was: .*(NaN|negative elements)"):
        WAYS[way](target, torch.full((4, 8), bad))
    assert same_planes(target, before)


def test_other_kinds_of_numbers_and_shapes_go_as_in_torch() -> None:
    target = quantized(torch.rand(4, 8), "fixed16")
    for source in (torch.arange(8), torch.ones(4, 8, dtype=torch.bool), torch.tensor(0.5), torch.ones(8).bfloat16()):
        expected = torch.zeros(4, 8).copy_(source)
        target.copy_(source)
        assert torch.equal(target.dequantize(), expected)
    for source in (torch.ones(3), torch.ones(4, 8).to_sparse()):
        with pytest.raises(RuntimeError) as said:
            torch.zeros(4, 8).copy_(source)
        with pytest.raises(RuntimeError, match=str(said.value)[:20].replace("(", r"\(").replace(")", r"\)")):
            target.copy_(source)


def facts(tensor: FixedPointTensor) -> tuple[object, ...]:
    return [plane.clone() for plane in tensor.blocks.planes], tensor.format, tensor.roundings


@pytest.mark.parametrize(("one", "other"), [("fixed16", "fixed12"), ("fixed8", "<4,8>"), ("fixed20", "fixed16")])
@pytest.mark.parametrize("shape", [(3, 300), (2, 4, 70), (5,), ()])
def test_codes_are_exchanged_and_nothing_is_rounded(one: str, other: str, shape: tuple[int, ...]) -> None:
    first, second = (quantized(torch.randn(shape), format) for format in (one, other))
    first.add_(1.0)
    second.rounding = "nearest"
    stream, memory = first.stream, first.codes.data_ptr()
    before, values = [facts(first), facts(second)], (first.dequantize(), second.dequantize())
    window = first.detach()
    assert exchange_codes(first, second)
    assert second.codes.data_ptr() == memory
    assert (first.stream, first.rounding, second.rounding) == (stream, "stochastic", "nearest")
    for tensor, (planes, format, roundings), value in zip((second, first), before, values, strict=True):
        assert (tensor.format, tensor.roundings) == (format, roundings)
        assert all(map(torch.equal, tensor.blocks.planes, planes))
        assert torch.equal(tensor.dequantize(), value)
    window.add_(1.0)  # it went with the codes
    assert torch.equal(window.dequantize(), second.dequantize())
    second.add_(1.0)
    first.mul_(2.0)
    assert torch.equal(window.dequantize(), second.dequantize())


def test_others_are_not_exchanged() -> None:
    x = quantized(torch.randn(4, 300), "fixed16")
    before = facts(x)
    for other in (
        torch.randn(4, 300),
        quantized(torch.randn(300, 4), "fixed16"),
        quantized(torch.randn(8, 300), "fixed16")[:4],
    ):
        assert not exchange_codes(x, other)
        assert not exchange_codes(other, x)
    assert not exchange_codes(quantized(torch.randn(4, 300), "fixed16").t(), quantized(torch.randn(4, 300), "fixed16"))
    assert all(map(torch.equal, before[0], x.blocks.planes))
