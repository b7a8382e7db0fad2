"""Compile the kernels for GPUs that are not there, and say what came of them.

``python -m tools.aot [--all] [--target sm_90 ...]`` prints for each kernel and target the registers
and spills of a thread, and how many of the bytes it moves go 128 bits at a time: kernels that wait for memory should
spill nothing and move everything but exponents so. It ends with 1 if anything is wrong with any of them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tools import catalogue
from tools.catalogue import TILINGS, Kernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

_PTX_ACCESS = re.compile(r"\b(ld|st)\.global\S*?(?:\.v(\d))?\.b(\d+)\b")
_AMD_ACCESS = re.compile(r"\b(?:global|buffer)_(load|store)_dwordx(\d)\b")
_FMA = re.compile(r"call (?:<(\d+) x float>|float) @llvm\.fma|\bfma\.rn\.f32(x2)?|\bv_(pk_)?fma\w*_f32")
_INEXACT = re.compile(
    r"\.ftz|\.approx|div\.full|!fpmath|denorm_mode_32 [012]"
    r"|\bf(?:add|sub|mul|div) (?:\w+ )*?(?:fast|contract|reassoc|arcp|afn)\b"
)


class Report(NamedTuple):
    """What came of a kernel.

    Attributes:
        registers: per thread.
        spills: bytes of stack (NVIDIA) or vector registers (AMD) of a thread that are memory for want of registers.
        scalar_spills: AMD's scalar registers that are kept in lanes of a vector register instead.
        loads, stores: bytes per element that go at least 128 bits at a time.
        inexact: traces of arithmetic other than IEEE float32's, denormals included.
    """

    kernel: str
    target: str
    registers: int
    spills: int
    scalar_spills: int
    loads: float
    stores: float
    inexact: list[str]


def examine(kernel: Kernel, target: str, fuse: bool = False) -> Report:
    """Compile ``kernel`` for ``target``, multiplications and additions fused if wanted, and read what was made."""
    gpu = TARGETS[target]
    tiling = TILINGS[kernel.tiling].filling(kernel.warps, gpu.warp_size)
    names = kernel.function.arg_names
    source = ASTSource(
        kernel.function,
        {name: kernel.types.get(name, "constexpr") for name in names},
        {**kernel.values, "TILING": tiling},
        {(names.index(name),): [["tt.divisibility", 16]] for name, type in kernel.types.items() if type[0] == "*"},
    )
    compiled = triton.compile(source, target=gpu, options=tiling.options(gpu.warp_size) | {"enable_fp_fusion": fuse})
    moved: Counter[str] = Counter()
    inexact = set(_INEXACT.findall(compiled.asm["llir"]))
    if gpu.backend == "cuda":
        code = compiled.asm["ptx"]
        registers, spills = _resources(compiled.asm["cubin"])
        scalar_spills = 0
        for kind, vector, bits in _PTX_ACCESS.findall(code):
            size = int(vector or 1) * int(bits) // 8
            moved[kind] += size if size >= 16 else 0
    else:
        code = compiled.asm["amdgcn"]
        counts = {name: int(count) for name, count in re.findall(r"\.(\w+_count): +(\d+)", code)}
        registers, spills, scalar_spills = (counts[f"{name}_count"] for name in ("vgpr", "vgpr_spill", "sgpr_spill"))
        for kind, words in _AMD_ACCESS.findall(code):
            moved[{"load": "ld", "store": "st"}[kind]] += 4 * int(words) if int(words) >= 4 else 0
    inexact.update(_INEXACT.findall(code))
    # AMD's divisions and roots are made of multiply-adds, so there only kernels without them tell.
    countable = gpu.backend == "cuda" or not re.search(
        r"\bfdiv\b|\b[su]div i64 %\w+, %|@llvm\.sqrt", compiled.asm["llir"]
    )
    if countable and _multiply_adds(code) != _multiply_adds(compiled.asm["llir"]):
        inexact.add("contraction")
    loads, stores = moved["ld"] / tiling.per_thread, moved["st"] / tiling.per_thread
    return Report(kernel.name, target, registers, spills, scalar_spills, loads, stores, sorted(inexact))


def _multiply_adds(code: str) -> int:
    """The fused multiply-adds in assembly, or in LLVM's representation, which has only those that a kernel asks for."""
    return sum(int(vector or 1) * (2 if pair or packed else 1) for vector, pair, packed in _FMA.findall(code))


def _resources(cubin: bytes) -> tuple[int, int]:
    """The registers and the bytes of stack that a thread of a CUDA binary takes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.findall(rf"{name}:(\d+)", usage)[0]) for name in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def faults(kernel: Kernel, report: Report, spills: int = 0, scalar_spills: int = 8) -> list[str]:
    """What is wrong with a compiled kernel: inexact arithmetic, registers in memory, narrow accesses.

    Args:
        spills, scalar_spills: how many are no fault; of the scalar ones, which are not in memory, a few are none.
    """
    found = [f"inexact: {trace}" for trace in report.inexact]
    # Where a tensor is so large that its rows are found by a 64-bit division, that division is a function call.
    if report.spills > spills and kernel.tiling != "huge":
        found.append(f"{report.spills} spilled")
    if report.scalar_spills > scalar_spills:
        found.append(f"{report.scalar_spills} scalar registers spilled")
    if kernel.tiling in ("flat", "rest", "huge"):
        for name, wide, due in (("loads", report.loads, kernel.loads), ("stores", report.stores, kernel.stores)):
            if wide != due:
                found.append(f"{name} {wide:g} of {due} bytes in 128 bits")
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.aot", description=__doc__)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--all", action="store_true", help="most kernels that can be had, not only the usual ones")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each kernel and target; ends with 0")
    arguments = parser.parse_args()
    if not arguments.json:
        print(f"Triton {triton.__version__}; loads and stores: bytes per element in 128 bits, found / due")
        print(f"{'kernel':50} {'target':7} registers spills  loads stores")
    wrong = False
    for kernel, target in product(catalogue.every() if arguments.all else catalogue.usual(), arguments.target):
        report: Report | None = None
        try:
            report = examine(kernel, target)
            found = faults(kernel, report)
        except Exception as error:  # whatever a compiler raises
            found = [f"does not compile: {str(error).strip() or type(error).__name__}"]
        wrong |= found != []
        if arguments.json:
            line = {"triton": triton.__version__, "folder": str(Path(triton.__file__).parents[1]), "target": target}
            print(
                json.dumps(line | {"kernel": kernel.name, "compiled": report is not None, "faults": found}), flush=True
            )
        elif report is None:
            print(f"{kernel.name:50} {target:7} {found[0]}")
        else:
            widths = f"{report.loads:g}/{kernel.loads} {report.stores:g}/{kernel.stores}"
            measured = f"{report.registers:9} {report.spills:6}  {widths}"
            print(f"{kernel.name:50} {target:7} {measured} {'; '.join(found)}".rstrip())
    return int(wrong and not arguments.json)


if __name__ == "__main__":
    sys.exit(main())
