"""The kernels compiled for GPUs that need not be there: no spills, wide memory accesses, IEEE arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowprec_plugin import FixedPointFormat
from lowprec_plugin.blocks import empty_blocks
from lowprec_plugin.updates import Algorithm
from lowprec_plugin.wire_reference import BLOCK, RESIDUAL, Chunk, Piece, blocks_of, chunk_bytes, chunk_of
from tests.kernels.conftest import INTERPRETED

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="a process that interprets does not compile: see test_modes.py")

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def check(kernel: Any, target: str, scalar_spills: int = 0) -> None:
    from lowprec_plugin.kernels import aot

    report = aot.examine(kernel, target)
    assert report.inexact == [], report
    # Where a tensor is so large that its rows are found by a 64-bit division, that division is a function call.
    assert report.spills == 0 or kernel.tiling == "huge", report
    assert report.scalar_spills <= scalar_spills, report
    if kernel.tiling in ("flat", "rest", "huge"):
        assert (report.loads, report.stores) == (kernel.loads, kernel.stores), report


@pytest.mark.parametrize("target", TARGETS)
def test_usual_kernels(target: str) -> None:
    from lowprec_plugin.kernels import aot

    for kernel in aot.kernels():
        if target == "sm_90" or kernel.name.startswith(
            ("quantize <", "dequantize", "rounded", "adam", "sum 12", "read 8")
        ):
            check(kernel, target)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", TARGETS)
def test_all_kernels(target: str) -> None:
    from lowprec_plugin.kernels import aot

    for kernel in aot.kernels(everything=True):
        check(kernel, target, scalar_spills=8)  # to lanes of a register, not to memory


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_fused_multiply_add_would_be_seen(target: str) -> None:
    from lowprec_plugin.kernels import aot

    kernel = next(kernel for kernel in aot.kernels() if kernel.name.startswith("sgd"))
    assert aot.examine(kernel, target, fuse=True).inexact == ["contraction"]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Kernels by name and binary, as they are launched: compiled for a GPU of which only the name is known."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Driver:
        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return device

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    launches: list[tuple[str, str]] = []
    launch = JITFunction.run

    def compile_only(self: Any, *arguments: Any, warmup: bool, **keywords: Any) -> None:
        launches.append((self.__name__, launch(self, *arguments, warmup=True, **keywords).hash))

    monkeypatch.setattr(driver, "_active", Driver())
    monkeypatch.setattr(JITFunction, "run", compile_only)
    return launches


def test_conversions_compile_once_per_kind(launched: list[tuple[str, str]]) -> None:
    from lowprec_plugin.kernels import convert

    for name in ("fixed16^2", "<4,12>"):
        format = FixedPointFormat.parse(name)
        for shape in ((3, 256), (16, 1, 256), (1, 256)):
            x, blocks = torch.rand(shape), empty_blocks(shape, format, None)
            for key in (0, 1, 16, 2**64 - 1):
                convert.quantize(x, format, blocks, stochastic=True, key=key, bits=None, first_row=key % 2)
            convert.dequantize(blocks, format, x)
    assert len(launched) == 2 * 3 * (4 + 1)
    assert len(set(launched)) == 2 * 2


def test_an_update_is_one_launch_per_kind(launched: list[tuple[str, str]]) -> None:
    from lowprec_plugin.kernels import step

    format = FixedPointFormat(16)
    shapes = [(4, 256), (5,), (8, 512), (), (1, 256), (1000,)]
    grads = [torch.rand(shape) for shape in shapes]
    stores = [[(empty_blocks(shape, format, None), format)] * 2 for shape in shapes]
    for counting in (False, True):
        step.update(
            Algorithm.LION,
            grads,
            stores,
            [2**64 - 1] * 6,
            [(1.0,) * 5] * 6,
            [0] * 6,
            stochastic=True,
            counting=counting,
        )
    assert len(launched) == len(set(launched)) == 2 * 2  # matrices and vectors


def test_a_chunk_is_one_launch_per_kind(launched: list[tuple[str, str]]) -> None:
    from lowprec_plugin.kernels import wire

    def chunk(blocks: int) -> Chunk:
        return chunk_of(torch.zeros(2, chunk_bytes(blocks, 12), dtype=torch.uint8)[1], blocks, 12)

    def pieces(sizes: list[int], skip: int, residuals: bool) -> list[Piece]:
        made, place = [], 0
        for n in sizes:
            residual = empty_blocks((blocks_of(n), BLOCK), RESIDUAL, None) if residuals else None
            made.append(Piece(torch.zeros(n + skip)[skip:], 2**40 * place, place, 2**64 - 1, place, residual))
            place += blocks_of(n)
        return made

    for sizes in ([1000], [256, 1, 700, 512], [64] * 17):
        for skip, residuals in ((0, False), (1, False), (0, True)):
            wire.round_(pieces(sizes, skip, residuals), chunk(20), 12, True)
        wire.sum_(pieces(sizes, 1, True), [chunk(20)] * len(sizes), chunk(20), 12, len(sizes) * 1.5, True)
        wire.read_(pieces(sizes, 0, True) + pieces(sizes, 1, False), chunk(20), 12)
    assert len(launched) == 3 * (3 + 1 + 2)
    assert len(set(launched)) == 3 + 1 + 2
