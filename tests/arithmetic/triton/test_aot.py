"""The kernels compiled for GPUs that need not be there: no spills, wide memory accesses, IEEE arithmetic."""

from __future__ import annotations

import importlib
import json
import pkgutil
from typing import Any

import pytest
import torch

from lowprec_plugin import FixedPointFormat
from lowprec_plugin.arithmetic.blocks import empty_blocks
from lowprec_plugin.arithmetic.formulas import LION
from lowprec_plugin.arithmetic.random_bits import Draw
from lowprec_plugin.arithmetic.reference.wire import BLOCK, RESIDUAL, Chunk, Piece, blocks_of, chunk_bytes, chunk_of
from lowprec_plugin.arithmetic.updates import Stored, Update
from tests.arithmetic.triton.conftest import INTERPRETED

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="a process that interprets does not compile: see test_modes.py")

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


@pytest.mark.parametrize("target", TARGETS)
def test_usual_kernels(target: str) -> None:
    from tools import aot, catalogue

    few = ("quantize <", "dequantize", "rounded", "adam", "sum 12", "read 8")
    for kernel in catalogue.usual():
        if target == "sm_90" or kernel.name.startswith(few):
            report = aot.examine(kernel, target)
            few_scalar = 16 if target == "gfx942" else 0  # Triton 3.9 keeps a dozen in lanes of vector registers
            assert aot.faults(kernel, report, scalar_spills=few_scalar) == [], report


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", TARGETS)
def test_all_kernels(target: str) -> None:
    from tools import aot, catalogue

    for kernel in catalogue.every():
        report = aot.examine(kernel, target)
        assert aot.faults(kernel, report, spills=8) == [], report  # two registers of a thread


def test_every_kernel_of_the_package_is_a_usual_one() -> None:
    from triton.runtime.jit import JITFunction

    from lowprec_plugin.arithmetic import triton as kernels
    from tools import catalogue

    named = set()
    for found in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}."):
        module = importlib.import_module(found.name)
        named |= {name for name, value in vars(module).items() if isinstance(value, JITFunction)}
    launched = {name for name in named if name.endswith("_kernel")}
    assert launched == {kernel.function.__name__ for kernel in catalogue.usual()}


def test_faults_are_told() -> None:
    from tools import aot, catalogue

    kernel = next(iter(catalogue.usual()))
    good = aot.Report(kernel.name, "gfx942", 64, 0, 0, kernel.loads, kernel.stores, [])
    assert aot.faults(kernel, good) == []
    assert aot.faults(kernel, good._replace(inexact=[".ftz"])) == ["inexact: .ftz"]
    assert aot.faults(kernel, good._replace(spills=8)) == ["8 spilled"]
    assert aot.faults(kernel, good._replace(spills=8), spills=8) == []
    assert aot.faults(kernel, good._replace(scalar_spills=9)) == ["9 scalar registers spilled"]
    assert aot.faults(kernel, good._replace(stores=0)) == ["stores 0 of 2 bytes in 128 bits"]


def test_the_command_says_what_does_not_compile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import triton
    import triton.language as tl

    from tools import aot, catalogue

    @triton.jit
    def broken_kernel(TILING: tl.constexpr) -> None:
        tl.static_assert(False, "as it should not be")

    kernel = catalogue.Kernel("broken", broken_kernel, {}, {}, "flat", 1, 0, 0)
    good = next(kernel for kernel in catalogue.usual() if kernel.name.startswith("dequantize"))
    for kernels, code in (([kernel, good], 1), ([good], 0)):
        monkeypatch.setattr(catalogue, "usual", lambda kernels=kernels: kernels)
        monkeypatch.setattr("sys.argv", ["aot", "--target", "sm_90"])
        assert aot.main() == code
        printed = capsys.readouterr().out
        assert ("does not compile" in printed and "as it should not be" in printed) == bool(code)
        assert good.name in printed
        monkeypatch.setattr("sys.argv", ["aot", "--target", "sm_90", "--json"])
        assert aot.main() == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {line["triton"] for line in lines} == {triton.__version__}
        assert [line["compiled"] for line in lines] == [kernel is good for kernel in kernels]
        assert [bool(line["faults"]) for line in lines] == [kernel is not good for kernel in kernels]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_fused_multiply_add_would_be_seen(target: str) -> None:
    from tools import aot, catalogue

    kernel = next(kernel for kernel in catalogue.usual() if kernel.name.startswith("sgd"))
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
    from lowprec_plugin.arithmetic.triton import convert

    for name in ("fixed16^2", "<4,12>"):
        format = FixedPointFormat.parse(name)
        for shape in ((3, 256), (16, 1, 256), (1, 256)):
            x, blocks = torch.rand(shape), empty_blocks(shape, format, None)
            for key in (0, 1, 16, 2**64 - 1):
                convert.quantize(x, format, blocks, Draw(True, key, first_row=key % 2))
            convert.dequantize(blocks, format, x)
    assert len(launched) == 2 * 3 * (4 + 1)
    assert len(set(launched)) == 2 * 2


def test_an_update_is_one_launch_per_kind(launched: list[tuple[str, str]]) -> None:
    from lowprec_plugin.arithmetic.triton import step

    format = FixedPointFormat(16)
    shapes = [(4, 256), (5,), (8, 512), (), (1, 256), (1000,)]
    grads = [torch.rand(shape) for shape in shapes]
    stores = [[Stored(empty_blocks(shape, format, None), format)] * 2 for shape in shapes]
    for counting in (False, True):
        step.update(Update(LION, grads, stores, [2**64 - 1] * 6, [(1.0,) * 5] * 6, [0] * 6, counting=counting))
    assert len(launched) == len(set(launched)) == 2 * 2  # matrices and vectors


def test_a_chunk_is_one_launch_per_kind(launched: list[tuple[str, str]]) -> None:
    from lowprec_plugin.arithmetic.triton import wire

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
