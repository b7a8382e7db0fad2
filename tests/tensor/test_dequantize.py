"""The operator ``lowprec::dequantize`` is what torch takes it for (``tests/arithmetic/on_toy.py``: on every device)."""

from __future__ import annotations

import pytest
import torch

from lowprec_plugin import FixedPointFormat
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.tensor.dequantize import dequantize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("format", ["fixed16", "fixed24", "<4,12>", "fixed8^2"])
def test_torch_finds_nothing_wrong(format: str, dtype: torch.dtype) -> None:
    """Of its schema, its shapes on fake tensors, and its graphs with symbolic sizes."""
    parsed = FixedPointFormat.parse(format)
    blocks, _ = ops.quantize(torch.rand(3, 300), parsed)
    torch.library.opcheck(torch.ops.lowprec.dequantize.default, (*blocks, format, dtype))
    assert torch.equal(dequantize(blocks, parsed, dtype), ops.dequantize(blocks, parsed, dtype))
