"""The Triton kernels, for NVIDIA and AMD GPUs: the arithmetic of :mod:`..reference.rounding`, bit for bit.

Triton is imported nowhere else in the package, and here only when a kernel is wanted. Under ``TRITON_INTERPRET=1``
the same kernels run on CPU tensors, slowly, which is how they are tested where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.formulas import Algorithm, Hyper, Updated
from lowprec_plugin.formats import FixedPointFormat


@cache
def available() -> tuple[bool, str]:
    """Whether the Triton kernels can be used, and if not, why."""
    try:
        from triton import __version__, knobs
    except ImportError as error:
        return False, f"Triton is not to be had: {error}"
    if tuple(int(part) for part in __version__.split(".")[:2]) < (3, 6):
        return False, f"Triton {__version__} flushes denormals in square roots; 3.6 and later do not"
    if knobs.runtime.interpret:
        return True, "Triton kernels, interpreted"
    if torch.cuda.is_available():
        return True, "Triton kernels"
    return False, "there is no GPU, and TRITON_INTERPRET=1 is not set"


def quantize(
    x: Tensor, format: FixedPointFormat, out: Blocks, *, stochastic: bool, key: int, bits: Tensor | None, first_row: int
) -> int:
    """Round ``x`` into ``out``; see :func:`lowprec_plugin.arithmetic.ops.quantize`. Returns the saturated elements."""
    from lowprec_plugin.arithmetic.triton import convert

    return convert.quantize(x, format, out, stochastic=stochastic, key=key, bits=bits, first_row=first_row)


def dequantize(blocks: Blocks, format: FixedPointFormat, out: Tensor) -> None:
    """Write the stored numbers to ``out`` (float32 or bfloat16, contiguous)."""
    from lowprec_plugin.arithmetic.triton import convert

    convert.dequantize(blocks, format, out)


def rounded(
    x: Tensor, format: FixedPointFormat, out: Tensor, *, stochastic: bool, key: int, bits: Tensor | None
) -> Tensor:
    """Write to float32 ``out`` the numbers of ``format`` that ``x`` is rounded to. Returns the saturated ones."""
    from lowprec_plugin.arithmetic.triton import convert

    return convert.rounded(x, format, out, stochastic=stochastic, key=key, bits=bits)


def update(
    algorithm: Algorithm,
    grads: Sequence[Tensor],
    stores: Sequence[Sequence[tuple[Blocks, FixedPointFormat]]],
    keys: Sequence[int],
    hypers: Sequence[Hyper],
    first_rows: Sequence[int],
    *,
    stochastic: bool,
    counting: bool,
) -> Updated:
    """One fused step over many parameters; see :func:`lowprec_plugin.arithmetic.ops.update_`."""
    from lowprec_plugin.arithmetic.triton import step

    return step.update(algorithm, grads, stores, keys, hypers, first_rows, stochastic=stochastic, counting=counting)
