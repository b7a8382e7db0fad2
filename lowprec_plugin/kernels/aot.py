"""Compile the kernels for GPUs that are not there, and say what the compiler made of them.

``python -m lowprec_plugin.kernels.aot [target ...]`` prints, for each kernel and target, the registers per thread, the
spills, and how wide global memory is read and written: a kernel that waits for memory should do it 128 bits at a time.
Targets are ``sm_90``, ``gfx942`` and the like; see ``TARGETS``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource, CompiledKernel

from lowprec_plugin.kernels.convert import dequantize_kernel, quantize_kernel
from lowprec_plugin.kernels.rounding import Code
from lowprec_plugin.kernels.step import FLOAT32, update_kernel
from lowprec_plugin.kernels.tiles import Tiling, options
from lowprec_plugin.updates import Algorithm

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_BLOCKS = Tiling(width=256, flat=True, aligned=True, wide=False)
_PLANE_TYPES = {1: ("*i8", None), 2: ("*i16", None), 3: ("*i16", "*u8")}


class Kernel(NamedTuple):
    """A kernel and what to compile it for: the types of its run-time arguments, the values of the others."""

    name: str
    function: object
    types: dict[str, str]
    values: dict[str, object]


class Report(NamedTuple):
    """What became of a kernel.

    Attributes:
        registers: per thread.
        spills: bytes of spilled registers stored per thread (NVIDIA), or registers spilled (AMD).
        loads, stores: instructions on global memory, by the bits that each moves per thread.
        fused: fused multiply-adds beyond the explicit ones; see ``tests``.
    """

    kernel: str
    target: str
    registers: int
    spills: int
    loads: dict[int, int]
    stores: dict[int, int]
