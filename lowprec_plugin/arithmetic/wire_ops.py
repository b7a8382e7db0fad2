"""The door to the arithmetic of the wire: which backend rounds, sums and reads what crosses the network.

The law is that of :mod:`lowprec_plugin.arithmetic.reference.wire`, whatever the backend.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lowprec_plugin.arithmetic.backends import serving
from lowprec_plugin.arithmetic.reference.wire import WORD_LENGTHS, Chunk, Piece
from lowprec_plugin.text.option_error import Option, OptionError


def check_word_length(word_length: int, name: str = "word_length") -> None:
    """Raise ``ValueError`` unless gradients can travel with ``word_length`` bits."""
    if isinstance(word_length, bool) or not isinstance(word_length, int) or word_length not in WORD_LENGTHS:
        raise OptionError(
            Option.given(name, word_length), f" is not one of {WORD_LENGTHS}, the bits that a gradient travels with"
        )


def round_(pieces: Sequence[Piece], chunk: Chunk, word_length: int, rounding: str) -> None:
    """Round gradients into ``chunk``, in place: see :func:`lowprec_plugin.arithmetic.reference.wire.round_`."""
    if pieces:
        serving(chunk.codes.device).round_(pieces, chunk, word_length, rounding == "stochastic")


def sum_(
    pieces: Sequence[Piece], chunks: Sequence[Chunk], out: Chunk, word_length: int, divisor: float, rounding: str
) -> None:
    """Sum the ranks' chunks into ``out``, in place: see :func:`lowprec_plugin.arithmetic.reference.wire.sum_`."""
    if pieces:
        serving(out.codes.device).sum_(pieces, chunks, out, word_length, divisor, rounding == "stochastic")


def read_(pieces: Sequence[Piece], chunk: Chunk, word_length: int) -> None:
    """Write the numbers of ``chunk`` to the pieces, in place: see :func:`.reference.wire.read_`."""
    if not pieces:
        return
    # A mean of float16 gradients may be beyond float16's range: torch rounds it as it does sums.
    halves = [piece for piece in pieces if piece.values.dtype == torch.float16]
    wide = [piece._replace(values=piece.values.float()) for piece in halves]
    others = [piece for piece in pieces if piece.values.dtype != torch.float16]
    serving(chunk.codes.device).read_([*others, *wide], chunk, word_length)
    for half, piece in zip(halves, wide, strict=True):
        half.values.copy_(piece.values)
