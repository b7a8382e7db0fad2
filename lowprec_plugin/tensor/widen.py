"""Wider words for a tensor that exists, every value kept exactly."""

from __future__ import annotations

from dataclasses import replace

import torch

from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.blocks import Blocks, from_planes, to_planes
from lowprec_plugin.formats import MIN_EXPONENT, FixedPointFormat
from lowprec_plugin.tensor.opening import renew
from lowprec_plugin.tensor.tensor import FixedPointTensor


def widened(format: FixedPointFormat, word_length: int) -> FixedPointFormat:
    """``format`` with words of ``word_length`` bits; a static one gets the new bits behind its radix point.

    Raises:
        ValueError: if that is fewer bits than ``format`` has.
    """
    more = word_length - format.word_length
    if more < 0:
        raise ValueError(f"{format} cannot be narrowed to {word_length} bits: values would be lost")
    fraction_length = None if format.fraction_length is None else format.fraction_length + more
    return replace(format, word_length=word_length, fraction_length=fraction_length)


@torch.no_grad()
def widen_(tensor: FixedPointTensor, word_length: int) -> None:
    """Store ``tensor`` in words of ``word_length`` bits, in place; every value stays what it is.

    From 16 bits to more, the codes stay where they are and a plane of one byte per number joins them. Windows on the
    tensor made before keep its former codes, and refuse to be written to.

    Raises:
        ValueError: if that is fewer bits than it has, or ``tensor`` is a window on a part of another.
    """
    if not tensor.is_whole:
        raise ValueError("a window on a tensor cannot be widened by itself: widen the tensor")
    format = widened(tensor.format, word_length)
    if format == tensor.format:
        return
    before = tensor.dequantize(torch.float32).view(tensor.codes.shape)
    blocks = _shifted(tensor.blocks, tensor.format, format)
    if not torch.equal(ops.dequantize(blocks, format), before):
        blocks, _ = ops.quantize(before, format)  # near the least exponent a radix point cannot move so far
    elif tensor.format.word_length >= 16:
        blocks = blocks._replace(codes=tensor.codes)
    tensor._codes, tensor._low, tensor._exponents = blocks
    tensor.format = format
    left = tensor._shared
    renew(tensor)
    left.left = f"widened to {word_length} bits"


@torch.no_grad()
def narrow_(tensor: FixedPointTensor, word_length: int) -> None:
    """Undo :func:`widen_`, in place: store ``tensor`` in words of ``word_length`` bits, which hold its values exactly.

    Windows on the tensor made before keep its former codes.

    Raises:
        ValueError: if they do not hold them, or ``tensor`` is a window on a part of another. Nothing is changed then.
    """
    if not tensor.is_whole:
        raise ValueError("a window on a tensor cannot be narrowed by itself: narrow the tensor")
    less, fraction_length = tensor.format.word_length - word_length, tensor.format.fraction_length
    format = replace(
        tensor.format,
        word_length=word_length,
        fraction_length=None if fraction_length is None else fraction_length - less,
    )
    floats = tensor.dequantize(torch.float32).view(tensor.codes.shape)
    blocks, _ = ops.quantize(floats, format)
    if not torch.equal(ops.dequantize(blocks, format), floats):
        raise ValueError(f"tensor {tensor.label!r} in {tensor.format} is not exact in {word_length} bits: words stay")
    tensor._codes, tensor._low, tensor._exponents = blocks
    tensor.format = format


def _shifted(blocks: Blocks, format: FixedPointFormat, wider: FixedPointFormat) -> Blocks:
    """Codes with zeros behind them, and radix points as much further back."""
    more = wider.word_length - format.word_length
    exponents = blocks.exponents
    if exponents is not None:
        exponents = (exponents.to(torch.int16) - more).clamp(min=MIN_EXPONENT).to(torch.int8)
    return Blocks(*to_planes(from_planes(blocks, format) << more, wider), exponents)
