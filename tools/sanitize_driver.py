"""Every native kernel on every word length, or calls that are wrong: what ``tools.sanitize`` runs.

``python -m tools.sanitize_driver SET [controls]``, in a process whose kernels are built with sanitizers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import torch

from lowprec_plugin import FixedPointFormat
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.blocks import Blocks, empty_blocks
from lowprec_plugin.arithmetic.formulas import ALGORITHMS
from lowprec_plugin.arithmetic.native import library as native
from lowprec_plugin.arithmetic.native import wire as native_wire
from lowprec_plugin.arithmetic.random_bits import Draw, key_of
from lowprec_plugin.arithmetic.reference.wire import (
    BLOCK,
    RESIDUAL,
    WORD_LENGTHS,
    Piece,
    blocks_of,
    chunk_bytes,
    chunk_of,
)
from lowprec_plugin.formats import rows_of
from tests import cases
from tests.algorithms import HYPERS

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
#: Where random bits begin: at the start, across the upper half of a counter, and past the last of 64 bits.
FIRST_ROWS = (0, 2**31 - 2, 2**62)


def conversions() -> None:
    """Quantise, dequantise and round every format, in shapes that fill no block, with bits that are hashed or given."""
    for index, format in enumerate(cases.formats()):
        for shape in cases.SHAPES:
            x = cases.floats(shape, squared=format.squared)
            given = torch.randint(65536, rows_of(shape), dtype=torch.int32)
            for rounding in ops.ROUNDINGS:
                first_row = FIRST_ROWS[index % 3]
                for bits in (None, given):
                    blocks, _ = ops.quantize(
                        x, format, rounding=rounding, key=key_of(1, index), bits=bits, first_row=first_row
                    )
                    for dtype in FLOATS:
                        ops.dequantize(blocks, format, dtype)
                    if not format.squared:
                        ops.rounded(cases.unusual(shape, torch.float32), format, rounding=rounding, bits=bits)
                    if not format.dynamic:
                        ops.rounded(cases.unusual(shape, torch.float64), format, rounding=rounding, bits=bits)


def updates() -> None:
    """Every algorithm on every word length: steps that keep exponents, change them, overflow and come to NaN."""
    words = list(range(2, 25))
    for algorithm in ALGORITHMS:
        hypers = cycle(HYPERS[algorithm])
        for index, word in enumerate(words):
            weights = FixedPointFormat(word, None if index % 4 else word - 3, 64)
            state = FixedPointFormat(words[-1 - index] if index % 3 else word, None, 64)
            squared = [name in algorithm.squared for name in algorithm.states]
            formats = [weights, *(state.as_squared() if each else state for each in squared)]
            for shape in cases.SHAPES:
                stored = [ops.Stored(ops.quantize(torch.rand(shape), format)[0], format) for format in formats]
                for step, scale in enumerate((1.0, 1e-3, 1e30, 3e38)):
                    grad = (torch.randn(shape) * scale).clamp(-3.4e38, 3.4e38).to(FLOATS[step % 2 * (index % 3)])
                    ops.update_(
                        algorithm, [grad], [stored], [next(hypers)], rounding=ops.ROUNDINGS[step % 2],
                        keys=[key_of(2, step)], first_rows=[FIRST_ROWS[step % 3]], counting=step % 2 == 0,
                    )  # fmt: skip


def wires() -> None:
    """What crosses the network, in every word length, with and without residuals, and a block that is not finite."""
    for word_length in WORD_LENGTHS:
        for dtype in FLOATS:
            for kept in (False, True):
                pieces, place = [], 0
                for index, elements in enumerate((1, 255, 256, 257, 1000)):
                    blocks = blocks_of(elements)
                    residual = empty_blocks((blocks, BLOCK), RESIDUAL, None) if kept else None
                    values = torch.randn(elements).to(dtype)
                    pieces.append(Piece(values, index, place, key_of(3, index), key_of(4, index), residual))
                    place += blocks
                pieces[-1].values[700] = torch.inf
                rows = torch.zeros(3, chunk_bytes(place, word_length), dtype=torch.uint8)
                chunks = [chunk_of(row, place, word_length) for row in rows]
                out = chunk_of(torch.zeros_like(rows[0]), place, word_length)
                for stochastic in (True, False):
                    for chunk in chunks:
                        native_wire.round_(pieces, chunk, word_length, stochastic)
                    native_wire.sum_(pieces, chunks, out, word_length, 3.0, stochastic)
                if dtype != torch.float16:
                    native_wire.read_(pieces, out, word_length)


def finite() -> None:
    """The search for what is not finite, in tensors of several sizes."""
    for dtype in FLOATS:
        tensors = [torch.randn(elements).to(dtype) for elements in (1, 7, 1023, 1025, 5000)]
        assert ops.first_nonfinite(tensors) is None
        tensors[3][1024] = torch.nan
        assert ops.first_nonfinite(tensors) == 3


def _codes_of_8_bits() -> Blocks:
    return Blocks(torch.zeros(3, 100, dtype=torch.int8), None, torch.zeros(3, 1, dtype=torch.int8))


def codes_read_as_wider() -> None:
    """Reads behind the end of codes."""
    native.dequantize(_codes_of_8_bits(), FixedPointFormat(16), torch.empty(3, 100))


def codes_written_as_wider() -> None:
    """Writes behind the end of codes."""
    native.quantize(torch.randn(3, 100), FixedPointFormat(16), _codes_of_8_bits(), Draw(True, key=1))


def exponent_that_overflows() -> None:
    """Adds 127 to the largest 32-bit integer."""
    format: Any = SimpleNamespace(word_length=8, dynamic=False, static_exponent=2**31 - 1, block_size=64, squared=False)
    native.dequantize(_codes_of_8_bits()._replace(exponents=None), format, torch.empty(3, 100))


#: What is wrong on purpose, and words of the report that has to come of it.
CONTROLS: dict[str, tuple[Callable[[], None], str]] = {
    "codes read as wider": (codes_read_as_wider, "READ of size"),
    "codes written as wider": (codes_written_as_wider, "WRITE of size"),
    "exponent that overflows": (exponent_that_overflows, "signed integer overflow"),
}


def in_a_process_of_its_own(run: Callable[[], None]) -> None:
    """Run what may end the process, and wait for its end."""
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def main(instruction_set: str, what: str = "kernels") -> None:
    """Run everything on the kernels of one instruction set, or else the controls."""
    torch.manual_seed(0)
    native.select_instruction_set(instruction_set)
    if what == "controls":
        for run, _ in CONTROLS.values():
            in_a_process_of_its_own(run)
        return
    with ops.use_backend("native"):
        for run in (conversions, updates, wires, finite):
            run()


if __name__ == "__main__":
    main(*sys.argv[1:])
