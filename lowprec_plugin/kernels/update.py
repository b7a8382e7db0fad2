"""One optimizer step over many parameters, in one launch per kind of tensor.

The parameters of a call that share formats, gradient type and tiling are one launch. A table on the device describes
each in one row: where its planes are, its shape, its keys, its hyperparameters. A program finds its parameter by
bisecting the column of first programs, reads its tile, evaluates the formula of :mod:`lowprec_plugin.updates` in
registers and writes the tile back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowprec_plugin.blocks import Blocks
from lowprec_plugin.formats import FixedPointFormat, rows_of
from lowprec_plugin.kernels.random import random_bits
from lowprec_plugin.kernels.rounding import (
    INFINITE,
    Code,
    encode,
    largest_bits,
    load_codes,
    power_of_two,
    store_codes,
)
from lowprec_plugin.kernels.tiles import Tiling, locate, on_boundaries, options, signed, tiling_of
from lowprec_plugin.updates import HYPERS, Algorithm, Hyper

Stores = Sequence[tuple[Blocks, FixedPointFormat, int]]

SGD, MOMENTUM, ADAM, LION = (tl.constexpr(int(algorithm)) for algorithm in Algorithm)

# A row of the table, in 64-bit words: six of the parameter, five of each tensor stored, and the hyperparameters.
_FIRST_PROGRAM, _INDEX, _GRAD, _ROWS, _ROW_LENGTH, _FIRST_ROW = (tl.constexpr(column) for column in range(6))
_STORES = tl.constexpr(6)
_STORE = tl.constexpr(5)
_HYPERS = tl.constexpr(6 + 3 * 5)
_COLUMNS = tl.constexpr(6 + 3 * 5 + HYPERS // 2 + 0)

_FLOAT32, _BFLOAT16, _FLOAT16 = (tl.constexpr(number) for number in range(3))
_GRADS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
