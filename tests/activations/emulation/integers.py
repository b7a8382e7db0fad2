"""The same arithmetic in Python's integers: what tests hold the emulation against. Shares no code with it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

Codes = np.ndarray  # of dtype object: Python's integers, which never overflow


def codes_of(x: Tensor, fraction: int) -> Codes:
    """Numbers as integers in units of ``2**-fraction``; each must be one."""
    exact = [Fraction(value) * 2**fraction for value in x.detach().double().flatten().tolist()]
    assert all(value.denominator == 1 for value in exact), "not on the grid"
    return np.array([int(value) for value in exact], dtype=object).reshape(tuple(x.shape))


def rounded(sums: Codes, drop: int, word_length: int) -> Codes:
    """Integers without their lowest ``drop`` bits, to the nearest, ties to even, saturated to the word."""

    def one(value: int) -> int:
        whole, rest = value >> drop, value & ((1 << drop) - 1)
        half = (1 << drop) >> 1
        whole += rest > half or (rest == half and drop > 0 and whole & 1)
        return max(-(1 << (word_length - 1)), min((1 << (word_length - 1)) - 1, whole))

    return np.vectorize(one, otypes=[object])(sums)


def quantized(x: Tensor, fraction: int, word_length: int) -> Codes:
    """Any floats rounded to codes, to the nearest, ties to even."""
    extra = 120  # float32's smallest steps
    units = [int(Fraction(value) * 2 ** (fraction + extra)) for value in x.detach().double().flatten().tolist()]
    return rounded(np.array(units, dtype=object).reshape(tuple(x.shape)), extra, word_length)


def floats(codes: Codes, fraction: int) -> Tensor:
    """Codes as float32, which must hold them."""
    values = [float(Fraction(int(code), 2**fraction)) for code in codes.flatten()]
    return torch.tensor(values, dtype=torch.float32).reshape(codes.shape)


def patches(x: Codes, kernel: int) -> Codes:
    """``(batch, rows, columns, channels * kernel * kernel)`` of a batch of images, without padding."""
    batch, channels, height, width = x.shape
    rows, columns = height - kernel + 1, width - kernel + 1
    out = np.empty((batch, rows, columns, channels * kernel * kernel), dtype=object)
    for row in range(rows):
        for column in range(columns):
            out[:, row, column] = x[:, :, row : row + kernel, column : column + kernel].reshape(batch, -1)
    return out
