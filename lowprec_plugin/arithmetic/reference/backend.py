"""The law in torch as a backend: slow, and on every device that has float64."""

from __future__ import annotations

import torch
from torch import Tensor

from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.random_bits import Draw, random_bits
from lowprec_plugin.arithmetic.reference import finite, gradients, rounding, wire
from lowprec_plugin.arithmetic.reference import update as update_reference
from lowprec_plugin.formats import FixedPointFormat, rows_of


class Reference:
    """:class:`~lowprec_plugin.arithmetic.backend.Backend` in torch's own operations."""

    name = "reference"
    devices: tuple[str, ...] = ("meta",)  # where there is nothing to compute

    update = staticmethod(update_reference.update)
    gather, squares = staticmethod(gradients.gather), staticmethod(gradients.squares)
    first_nonfinite = staticmethod(finite.first_nonfinite)
    round_, sum_, read_ = staticmethod(wire.round_), staticmethod(wire.sum_), staticmethod(wire.read_)

    def available(self) -> tuple[bool, str]:
        """Always."""
        return True, "torch"

    def failure_on(self, device: torch.device) -> str:
        """Why it cannot compute on ``device``, or nothing: it takes float64, and tensors that lie in memory."""
        try:
            torch.zeros(1, dtype=torch.float64, device=device).add_(1).data_ptr()
        except Exception as error:  # every device raises an exception of its own
            return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        return ""

    def quantize(self, x: Tensor, format: FixedPointFormat, out: Blocks, draw: Draw) -> int:
        """See :meth:`~lowprec_plugin.arithmetic.backend.Backend.quantize`."""
        blocks, saturated = rounding.quantize(x, format, _bits(x, draw))
        out.copy_(blocks)
        return saturated

    def dequantize(self, blocks: Blocks, format: FixedPointFormat, out: Tensor) -> None:
        """See :meth:`~lowprec_plugin.arithmetic.backend.Backend.dequantize`."""
        out.copy_(rounding.dequantize(blocks, format))

    def rounded(self, x: Tensor, format: FixedPointFormat, out: Tensor, draw: Draw) -> int:
        """See :meth:`~lowprec_plugin.arithmetic.backend.Backend.rounded`."""
        found, saturated = rounding.rounded(x, format, _bits(x, draw))
        out.copy_(found)
        return saturated


def _bits(x: Tensor, draw: Draw) -> Tensor | None:
    """The random bits to round ``x`` with: those given, or else the key's."""
    if draw.stochastic and draw.bits is None:
        return random_bits(draw.key, *rows_of(x.shape), draw.first_row, x.device)
    return draw.bits
