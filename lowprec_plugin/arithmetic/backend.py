"""What a backend of the arithmetic is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.random_bits import Draw
from lowprec_plugin.arithmetic.reference.wire import Chunk, Piece
from lowprec_plugin.arithmetic.updates import Update, Updated
from lowprec_plugin.formats import FixedPointFormat


class Backend(Protocol):
    """One way to compute the law of :mod:`lowprec_plugin.arithmetic.reference`, bit for bit.

    :mod:`.ops` and :mod:`.wire_ops` check what callers give. What they hand on lies on one device; tensors are not
    empty and, those of :meth:`first_nonfinite` aside, contiguous.

    Attributes:
        name: what :func:`~.backends.use_backend` and the table at the start of a run call it.
        devices: the types of device, by torch's names, that it serves where it is available.
    """

    name: str
    devices: tuple[str, ...]

    def available(self) -> tuple[bool, str]:
        """Whether it can run in this process, and if not, why."""

    def quantize(self, x: Tensor, format: FixedPointFormat, out: Blocks, draw: Draw) -> int:
        """Round float32 ``x`` into ``out``, see :func:`.ops.quantize`. Returns how many elements saturated."""

    def dequantize(self, blocks: Blocks, format: FixedPointFormat, out: Tensor) -> None:
        """Write the stored numbers to ``out``, float32 or bfloat16."""

    def rounded(self, x: Tensor, format: FixedPointFormat, out: Tensor, draw: Draw) -> int | Tensor:
        """Write to float32 ``out`` what ``x`` is rounded to, see :func:`.ops.rounded`. Returns how many saturated."""

    def update(self, step: Update) -> Updated:
        """One step over many parameters, in place, see :func:`.ops.update_`."""

    def gather(self, grad: Tensor, blocks: Blocks, format: FixedPointFormat, factor: Tensor | None, draw: Draw) -> None:
        """Add ``grad``, float32, bfloat16 or float16, to a gradient in codes, see :func:`.ops.gather_`."""

    def squares(self, blocks: Blocks, format: FixedPointFormat) -> Tensor:
        """The sum of the squares of a gradient in codes, see :func:`.ops.squares`."""

    def first_nonfinite(self, tensors: Sequence[Tensor]) -> int | None:
        """The index of the first tensor with a NaN or an infinity, or ``None``: of tensors of any dtype and layout.

        One of int8 is the exponents of a gradient in codes.
        """

    def round_(self, pieces: Sequence[Piece], chunk: Chunk, word_length: int, stochastic: bool) -> None:
        """Round gradients into ``chunk``, see :func:`.reference.wire.round_`."""

    def sum_(
        self,
        pieces: Sequence[Piece],
        chunks: Sequence[Chunk],
        out: Chunk,
        word_length: int,
        divisor: float,
        stochastic: bool,
    ) -> None:
        """Sum the ranks' chunks into ``out``, see :func:`.reference.wire.sum_`."""

    def read_(self, pieces: Sequence[Piece], chunk: Chunk, word_length: int) -> None:
        """Write the numbers of ``chunk`` to the pieces, see :func:`.reference.wire.read_`."""
