from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.widen import widen_, widened

FORMATS = ["fixed5", "fixed8", "fixed12", "fixed16", "fixed20", "<4,8>", "<4,12>", "<2,5>", "fixed12:64", "fixed8^2"]


def values(seed: int, squared: bool) -> torch.Tensor:
    """Blocks of very different sizes, zeros, and some at the bottom of the range."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 300, generator=generator) * torch.tensor([1.0, 1e-6, 0.0, 1e3, 1e-30, 1e-37]).unsqueeze(1)
    return x.abs() if squared else x


@given(st.sampled_from(FORMATS), st.integers(2, 24), st.integers(0, 1000))
def test_every_value_is_kept(text: str, word_length: int, seed: int) -> None:
    format = FixedPointFormat.parse(text)
    tensor = FixedPointTensor.quantize(values(seed, format.squared), format)
    before = tensor.dequantize()
    if word_length < format.word_length:
        with pytest.raises(ValueError, match=f"narrowed to {word_length} bits"):
            widen_(tensor, word_length)
        return
    widen_(tensor, word_length)
    assert tensor.format == widened(format, word_length)
    assert tensor.format.word_length == word_length
    assert tensor.format.integer_length == format.integer_length
    assert torch.equal(tensor.dequantize(), before)
    assert tensor.nbytes == tensor.format.nbytes(tensor.shape)
    with torch.no_grad():
        tensor.mul_(1.0)  # rounding what is exact changes nothing
    assert torch.equal(tensor.dequantize(), before)


def test_from_16_bits_no_code_moves() -> None:
    tensor = FixedPointTensor.quantize(values(0, False)[:4], "fixed16")
    where, nbytes = tensor.codes.data_ptr(), tensor.nbytes
    for word_length in (20, 24):
        widen_(tensor, word_length)
        assert tensor.codes.data_ptr() == where
        assert tensor.nbytes == nbytes + tensor.numel()


def test_a_window_made_before_reads_what_it_read() -> None:
    for text, word_length in (("fixed12", 16), ("fixed16", 24), ("fixed8", 12)):
        tensor = FixedPointTensor.quantize(values(0, False), text)
        window, before = tensor.detach(), tensor.dequantize()
        widen_(tensor, word_length)
        assert torch.equal(window.dequantize(), before)


def test_a_parameter_stays_the_one_it_was() -> None:
    param = torch.nn.Parameter(FixedPointTensor.quantize(values(0, False), "fixed12"))
    loss = (param * 2).sum()
    widen_(param, 16)  # type: ignore[arg-type]
    loss.backward()
    assert param.grad is not None
    assert isinstance(param, torch.nn.Parameter)


def test_a_part_cannot_be_widened() -> None:
    tensor = FixedPointTensor.quantize(values(0, False), "fixed12")
    with pytest.raises(ValueError, match="a window on a tensor"):
        widen_(tensor.t(), 16)  # type: ignore[arg-type]
