"""The Triton kernels as a backend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.random_bits import Draw
from lowprec_plugin.arithmetic.reference import finite
from lowprec_plugin.arithmetic.reference.wire import Chunk, Piece
from lowprec_plugin.arithmetic.updates import Update, Updated
from lowprec_plugin.formats import FixedPointFormat


@cache
def _available() -> tuple[bool, str]:
    try:
        from triton import __version__, knobs
    except ImportError as error:
        return False, f"Triton is not available: {error}"
    if tuple(int(part) for part in __version__.split(".")[:2]) < (3, 6):
        return False, f"Triton {__version__} flushes denormals in square roots; 3.6 and later do not"
    if knobs.runtime.interpret:
        return True, "Triton kernels, interpreted"
    if torch.cuda.is_available():  # other makes have a Triton of their own, which no test has compiled these for
        return True, "Triton kernels"
    return False, "there is no GPU, and TRITON_INTERPRET=1 is not set"


class Triton:
    """:class:`~lowprec_plugin.arithmetic.backend.Backend` in Triton. Its modules are imported when they are used."""

    name = "triton"
    devices: tuple[str, ...] = ("cuda",)  # AMD's too: torch calls them so

    first_nonfinite = staticmethod(finite.first_nonfinite)

    def available(self) -> tuple[bool, str]:
        """Whether Triton is installed, new enough, and has a GPU or interprets; and if not, which it lacks."""
        return _available()

    def quantize(self, x: Tensor, format: FixedPointFormat, out: Blocks, draw: Draw) -> int:
        """See :meth:`~lowprec_plugin.arithmetic.backend.Backend.quantize`."""
        from lowprec_plugin.arithmetic.triton import convert

        return convert.quantize(x, format, out, draw)

    def dequantize(self, blocks: Blocks, format: FixedPointFormat, out: Tensor) -> None:
        """See :meth:`~lowprec_plugin.arithmetic.backend.Backend.dequantize`."""
        from lowprec_plugin.arithmetic.triton import convert

        convert.dequantize(blocks, format, out)

    def rounded(self, x: Tensor, format: FixedPointFormat, out: Tensor, draw: Draw) -> Tensor:
        """See :meth:`~lowprec_plugin.arithmetic.backend.Backend.rounded`. The count stays on the device."""
        from lowprec_plugin.arithmetic.triton import convert

        return convert.rounded(x, format, out, draw)

    def update(self, step: Update) -> Updated:
        """See :meth:`~lowprec_plugin.arithmetic.backend.Backend.update`."""
        from lowprec_plugin.arithmetic.triton.step import update

        return update(step)

    def gather(self, grad: Tensor, blocks: Blocks, format: FixedPointFormat, factor: Tensor | None, draw: Draw) -> None:
        """See :meth:`~lowprec_plugin.arithmetic.backend.Backend.gather`."""
        from lowprec_plugin.arithmetic.triton import gradients

        gradients.gather(grad, blocks, format, factor, draw)

    def squares(self, blocks: Blocks, format: FixedPointFormat) -> Tensor:
        """See :meth:`~lowprec_plugin.arithmetic.backend.Backend.squares`."""
        from lowprec_plugin.arithmetic.triton import gradients

        return gradients.squares(blocks, format)

    def round_(self, pieces: Sequence[Piece], chunk: Chunk, word_length: int, stochastic: bool) -> None:
        """See :meth:`~lowprec_plugin.arithmetic.backend.Backend.round_`."""
        from lowprec_plugin.arithmetic.triton import wire

        wire.round_(pieces, chunk, word_length, stochastic)

    def sum_(
        self,
        pieces: Sequence[Piece],
        chunks: Sequence[Chunk],
        out: Chunk,
        word_length: int,
        divisor: float,
        stochastic: bool,
    ) -> None:
        """See :meth:`~lowprec_plugin.arithmetic.backend.Backend.sum_`."""
        from lowprec_plugin.arithmetic.triton import wire

        wire.sum_(pieces, chunks, out, word_length, divisor, stochastic)

    def read_(self, pieces: Sequence[Piece], chunk: Chunk, word_length: int) -> None:
        """See :meth:`~lowprec_plugin.arithmetic.backend.Backend.read_`."""
        from lowprec_plugin.arithmetic.triton import wire

        wire.read_(pieces, chunk, word_length)
