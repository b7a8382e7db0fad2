"""Compile the kernels for GPUs that are not there, and say what came of them.

``python -m lowprec_plugin.kernels.aot [--all] [--target sm_90 ...]`` prints for each kernel and target the registers
and spills of a thread, and how many of the bytes it moves go 128 bits at a time: kernels that wait for memory should
spill nothing and move everything but exponents so.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.kernels import convert
from lowprec_plugin.kernels.rounding import compiled as for_format
from lowprec_plugin.kernels.step import update_kernel
from lowprec_plugin.kernels.tables import BFLOAT16, FLOAT32
from lowprec_plugin.kernels.tiles import Tiling
from lowprec_plugin.kernels.wire import RESIDUAL, read_kernel, round_kernel, sum_kernel
from lowprec_plugin.updates import Algorithm
from lowprec_plugin.wire_reference import WORD_LENGTHS

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_TILINGS = {
    "flat": Tiling(256, 1, flat=True, aligned=True, wide=False),  # rows of whole blocks
    "rest": Tiling(256, 1, flat=False, aligned=True, wide=False),  # rows that end in a shorter block
    "huge": Tiling(256, 1, flat=False, aligned=True, wide=True),
    "odd": Tiling(32, 1, flat=False, aligned=False, wide=False),  # short rows of an odd length
    "vector": Tiling(1, 1, flat=True, aligned=True, wide=False),
}
_FORMATS = ("fixed8", "fixed16", "fixed24", "fixed16^2", "<4,12>")
_ROUNDED = (("fixed16", "*fp32"), ("<4,12>", "*fp32"), ("<4,16>", "*fp32"), ("<4,12>", "*fp64"))  # not stored

_PTX_ACCESS = re.compile(r"\b(ld|st)\.global\S*?(?:\.v(\d))?\.b(\d+)\b")
_AMD_ACCESS = re.compile(r"\b(?:global|buffer)_(load|store)_dwordx(\d)\b")
_FMA = re.compile(r"call (?:<(\d+) x float>|float) @llvm\.fma|\bfma\.rn\.f32(x2)?|\bv_(pk_)?fma\w*_f32")
_INEXACT = re.compile(
    r"\.ftz|\.approx|div\.full|!fpmath|denorm_mode_32 [012]"
    r"|\bf(?:add|sub|mul|div) (?:\w+ )*?(?:fast|contract|reassoc|arcp|afn)\b"
)


class Kernel(NamedTuple):
    """A kernel and what to compile it for.

    Attributes:
        types: of the arguments given at run time.
        values: of the compile-time ones, except ``TILING``.
        loads, stores: bytes per element that it has to move 128 bits at a time: all but exponents and what is too
            narrow or lies off boundaries.
    """

    name: str
    function: Any
    types: dict[str, str]
    values: dict[str, Any]
    tiling: str
    warps: int
    loads: int
    stores: int


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


def kernels(everything: bool = False) -> Iterator[Kernel]:
    """The kernels worth watching, or most that can be had."""
    if not everything:
        yield _quantize("fixed16", "flat", stochastic=True)
        yield _quantize("<4,16>", "flat", stochastic=True)
        yield _dequantize("fixed8", "flat", "*i16")
        for name, type in _ROUNDED:
            yield _rounded(name, "flat", type, stochastic=True)
        for algorithm in Algorithm:
            for counting in (False, True):
                yield _update(algorithm, ["fixed16", *["fixed8"] * algorithm.states], "flat", FLOAT32.value, counting)
        yield _update(Algorithm.ADAM, ["fixed24", "fixed16", "fixed16^2"], "flat", BFLOAT16.value)
        for word_length in WORD_LENGTHS:
            yield from _wire(word_length, FLOAT32.value, residual=True)
            yield from _wire(word_length, BFLOAT16.value, residual=False)
        return
    for name, tiling, stochastic in product(_FORMATS, _TILINGS, (True, False)):
        yield _quantize(name, tiling, stochastic)
    for name, tiling, out in product(_FORMATS, _TILINGS, ("*fp32", "*i16")):
        yield _dequantize(name, tiling, out)
    for (name, type), tiling, stochastic in product(_ROUNDED, _TILINGS, (True, False)):
        yield _rounded(name, tiling, type, stochastic)
    pairs = (("fixed16", "fixed8", FLOAT32), ("fixed24", "fixed16^2", BFLOAT16), ("<4,12>", "fixed24", FLOAT32))
    for algorithm, tiling, (weight, state, gradient) in product(Algorithm, _TILINGS, pairs):
        for counting in (False, True):
            yield _update(algorithm, [weight, *[state] * algorithm.states], tiling, gradient.value, counting)
    for word_length, gradient, residual, aligned in product(WORD_LENGTHS, (FLOAT32, BFLOAT16), *[(True, False)] * 2):
        yield from _wire(word_length, gradient.value, residual, aligned)


def _planes(format: FixedPointFormat) -> tuple[dict[str, str], dict[str, Any]]:
    types = {"codes": "*i8" if format.container_bytes == 1 else "*i16", "low": "*u8", "exponents": "*i8"}
    absent = {"low"} if format.container_bytes < 3 else set()
    absent |= set() if format.dynamic else {"exponents"}
    return {name: type for name, type in types.items() if name not in absent}, dict.fromkeys(absent)


def _quantize(name: str, tiling: str, stochastic: bool) -> Kernel:
    format = FixedPointFormat.parse(name)
    types, values = _planes(format)
    types |= {"x": "*fp32", "saturated": "*i64", "rows": "i64", "row_length": "i64", "first_row": "i64", "key": "i64"}
    types |= {"exponent": "i32"}
    values |= {"bits": None, "FORMAT": for_format(format), "STOCHASTIC": stochastic}
    title = f"quantize {name} {'stochastic' if stochastic else 'nearest'} {tiling}"
    return Kernel(title, convert.quantize_kernel, types, values, tiling, 4, 4, format.container_bytes)


def _dequantize(name: str, tiling: str, out: str) -> Kernel:
    format = FixedPointFormat.parse(name)
    types, values = _planes(format)
    types |= {"out": out, "rows": "i64", "row_length": "i64", "exponent": "i32"}
    values |= {"FORMAT": for_format(format)}
    size = 4 if out == "*fp32" else 2
    title = f"dequantize {name} {'float32' if size == 4 else 'bfloat16'} {tiling}"
    return Kernel(title, convert.dequantize_kernel, types, values, tiling, 4, format.container_bytes, size)


def _rounded(name: str, tiling: str, type: str, stochastic: bool) -> Kernel:
    format = FixedPointFormat.parse(name)
    types = {"x": type, "out": "*fp32", "saturated": "*i64", "exponent": "i32"}
    types |= dict.fromkeys(("rows", "row_length", "first_row", "key"), "i64")
    values = {"bits": None, "FORMAT": for_format(format), "STOCHASTIC": stochastic}
    title = f"rounded {name} {type[1:]} {'stochastic' if stochastic else 'nearest'} {tiling}"
    return Kernel(title, convert.round_kernel, types, values, tiling, 4, int(type[3:]) // 8, 4)


def _update(algorithm: Algorithm, names: list[str], tiling: str, gradient: int, counting: bool = False) -> Kernel:
    formats = [FixedPointFormat.parse(name) for name in names]
    size = sum(format.container_bytes for format in formats)
    chosen = tuple(for_format(format) for format in formats)
    values = {
        "ALGORITHM": int(algorithm),
        "FORMATS": chosen,
        "TYPE": gradient,
        "STOCHASTIC": True,
        "COUNTING": counting,
    }
    title = f"{algorithm.name.lower()} {'/'.join(names)} {('float32', 'bfloat16')[gradient]} {tiling}"
    title += " counting" * counting
    types = {"table": "*i64", "result": "*i64", "count": "i32"}
    return Kernel(title, update_kernel, types, values, tiling, 1, size + (4, 2)[gradient], size)


def _wire(word_length: int, gradient: int, residual: bool, aligned: bool = True) -> Iterator[Kernel]:
    """What rounds and reads a kind of gradients, and sums codes, of which a thread has 128 bits from 8 bits on."""
    format, size = for_format(FixedPointFormat(word_length)), (4, 2)[gradient] * aligned
    packed = word_length // 8 if word_length in (8, 16) else 0
    name = f"{word_length} bits {('float32', 'bfloat16')[gradient]}{'' if aligned else ' off boundaries'}"
    chunk = {"table": "*i64", "codes": "*u8", "exponents": "*i8", "count": "i32"}
    kind = {"FORMAT": format, "TYPE": gradient, "ALIGNED": aligned}
    rounded = kind | {"RESIDUAL": RESIDUAL if residual else None, "STOCHASTIC": True}
    title = f"round {name}{' residual' if residual else ''}"
    yield Kernel(title, round_kernel, chunk, rounded, "flat", 1, size + residual, packed + residual)
    if not residual:
        yield Kernel(f"read {name}", read_kernel, chunk, kind, "flat", 1, packed, size)
    elif aligned and gradient == FLOAT32.value:
        types = chunk | {"out_codes": "*u8", "out_exponents": "*i8"}
        types |= {"ranks": "i32", "stride": "i64", "headroom": "i32", "divisor": "fp32"}
        summed = {"FORMAT": format, "STOCHASTIC": True}
        yield Kernel(f"sum {word_length} bits", sum_kernel, types, summed, "flat", 1, packed, packed)


def examine(kernel: Kernel, target: str, fuse: bool = False) -> Report:
    """Compile ``kernel`` for ``target``, multiplications and additions fused if wanted, and read what was made."""
    gpu = TARGETS[target]
    tiling = _TILINGS[kernel.tiling].filling(kernel.warps, gpu.warp_size)
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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lowprec_plugin.kernels.aot", description=__doc__)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--all", action="store_true", help="most kernels that can be had, not only the usual ones")
    arguments = parser.parse_args()
    print(f"{'kernel':50} {'target':7} registers spills  loads stores (bytes per element in 128 bits, found / due)")
    for kernel, target in product(kernels(arguments.all), arguments.target):
        report = examine(kernel, target)
        widths = f"{report.loads:g}/{kernel.loads} {report.stores:g}/{kernel.stores}"
        print(f"{kernel.name:50} {target:7} {report.registers:9} {report.spills:6}  {widths} {report.inexact or ''}")


if __name__ == "__main__":
    main()
