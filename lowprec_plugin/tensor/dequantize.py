"""Codes to floats as an operator of torch's, ``lowprec::dequantize``, which compiled graphs hold as one node."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.blocks import Blocks, check_blocks
from lowprec_plugin.formats import FixedPointFormat

_library: Any = torch.library.Library("lowprec", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "dequantize(Tensor codes, Tensor? low, Tensor? exponents, str format, ScalarType dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_parse = lru_cache(FixedPointFormat.parse)


def dequantize(blocks: Blocks, format: FixedPointFormat, dtype: torch.dtype) -> Tensor:
    """The stored numbers as a new tensor of ``dtype``, by the operator."""
    return torch.ops.lowprec.dequantize(*blocks, str(format), dtype)  # type: ignore[no-any-return]


def _dequantize(codes: Tensor, low: Tensor | None, exponents: Tensor | None, format: str, dtype: torch.dtype) -> Tensor:
    blocks, parsed = Blocks(codes, low, exponents), _parse(format)
    check_blocks(blocks, parsed)  # whoever calls the operator gives planes of their own
    return ops.dequantize(blocks, parsed, dtype)


def _shape(codes: Tensor, low: Tensor | None, exponents: Tensor | None, format: str, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(codes, dtype=dtype)


# For every device: which backend computes, and whether one can, ``ops`` decides.
_library.impl("dequantize", _dequantize, "CompositeExplicitAutograd")
_library.impl("dequantize", _shape, "Meta")
