"""One optimizer step over many parameters, in one launch per kind of tensor.

The parameters of a call that share formats, gradient type and tiling are one launch. A table on the device describes
each in one row: where its planes are, its shape, its keys, its hyperparameters. A program finds its parameter by
bisecting the column of first programs, reads its tile, evaluates the formula of :mod:`..formulas` in
registers and writes the tile back.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.formulas import HYPERS, Algorithm, Hyper, Updated
from lowprec_plugin.arithmetic.triton import formulas
from lowprec_plugin.arithmetic.triton.counting import count_update, counts_of
from lowprec_plugin.arithmetic.triton.random import ALONE, FIRST_STATE, SECOND_STATE, random_bits
from lowprec_plugin.arithmetic.triton.rounding import (
    HUGE,
    INFINITE,
    CompiledFormat,
    compiled,
    count_saturated,
    encode,
    largest_bits,
    load_codes,
    power_of_two,
    radix,
    store_codes,
)
from lowprec_plugin.arithmetic.triton.tables import FLOAT_TYPES, load_floats, pointer, row_of
from lowprec_plugin.arithmetic.triton.tiles import Tiling, locate, on_boundaries, signed, tiling_of
from lowprec_plugin.formats import FixedPointFormat, rows_of

Stored = tuple[Blocks, FixedPointFormat]

SGD, MOMENTUM, ADAM, LION = (tl.constexpr(int(algorithm)) for algorithm in Algorithm)

# The table's columns, 64-bit words: the parameter's first program and its index, its gradient, shape and key; three
# planes and static exponent of each of up to three stored tensors; the hyperparameters, two a word.
INDEX, GRADIENT, ROWS, ROW_LENGTH, FIRST_ROW, KEY, STORES = (tl.constexpr(column) for column in range(1, 8))
STORE = tl.constexpr(4)
HYPER = tl.constexpr(7 + 3 * 4)
COLUMNS = tl.constexpr(7 + 3 * 4 + HYPERS // 2)
_NONE_REFUSED = 2**63 - 1
#: A program is one warp, whose threads agree on a block's exponent without waiting for other warps.
_WARPS = 1


@triton.jit
def stored(store, FORMAT: tl.constexpr, ALIGNED: tl.constexpr):
    """Of one stored tensor: pointers to its codes, lower codes and exponents; its exponent if static."""
    if FORMAT.word_length > 8:
        codes = pointer(tl.load(store), tl.int16, ALIGNED)
    else:
        codes = pointer(tl.load(store), tl.int8, ALIGNED)
    low, exponents = pointer(tl.load(store + 1), tl.uint8, ALIGNED), pointer(tl.load(store + 2), tl.int8, False)
    return codes, low, exponents, tl.load(store + 3).to(tl.int32)


@triton.jit
def read(store, place, FORMAT: tl.constexpr):
    """The tile of one stored tensor; for a squared format, the roots."""
    codes, low, exponents, exponent = store
    at, mask, block, inside, _ = place
    if FORMAT.dynamic:
        exponent = tl.load(exponents + block, mask=inside, other=0).to(tl.int32)
    return load_codes(codes, low, at, mask, FORMAT).to(tl.float32) * power_of_two(exponent)


@triton.jit
def write(
    x,
    largest,
    store,
    place,
    key,
    ROLE: tl.constexpr,
    FORMAT: tl.constexpr,
    TILING: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """Round the tile of one stored tensor and write it; returns its codes and their exponents."""
    codes, low, exponents, exponent = store
    at, mask, block, inside, counter = place
    bits = 0
    if STOCHASTIC:
        bits = random_bits(counter, key, ROLE, TILING.width, TILING.wide)
    code, chosen = encode(x, largest, bits, exponent, FORMAT, STOCHASTIC)
    store_codes(codes, low, at, mask, code, FORMAT)
    if FORMAT.dynamic:
        tl.store(exponents + block, chosen.to(tl.int8), mask=inside)
    return code, chosen


@triton.jit
def bounded(x, mask, TILING: tl.constexpr):
    """``x`` with zeros beyond the ends of its rows, where the formulas may have made anything."""
    if not TILING.flat:
        x = tl.where(mask, x, 0.0)
    return x


@triton.jit(do_not_specialize=["count"])
def update_kernel(
    table,
    result,
    count: tl.int32,
    ALGORITHM: tl.constexpr,
    FORMATS: tl.constexpr,
    TYPE: tl.constexpr,
    TILING: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    COUNTING: tl.constexpr,
):
    """Update the ``count`` parameters of ``table``.

    ``result`` is how many saturated and the first index refused; when counting, a row of counts by index follows it.
    """
    item = row_of(tl.program_id(0), table, count, COLUMNS)
    program = tl.program_id(0) - tl.load(item)
    rows, row_length = tl.load(item + ROWS), tl.load(item + ROW_LENGTH)
    place = locate(program, rows, row_length, tl.load(item + FIRST_ROW), TILING)
    at, mask, block, inside, counter = place
    hyper = (item + HYPER).to(tl.pointer_type(tl.float32))
    g = load_floats(tl.load(item + GRADIENT), at, mask, TYPE, TILING.aligned)
    FORMAT_P: tl.constexpr = FORMATS[0]
    store_p = stored(item + STORES, FORMAT_P, TILING.aligned)
    p = read(store_p, place, FORMAT_P)
    before = p
    if ALGORITHM != SGD:
        FORMAT_M: tl.constexpr = FORMATS[1]
        store_m = stored(item + STORES + STORE, FORMAT_M, TILING.aligned)
        m = read(store_m, place, FORMAT_M)
    if ALGORITHM == ADAM:
        FORMAT_R: tl.constexpr = FORMATS[2]
        store_r = stored(item + STORES + 2 * STORE, FORMAT_R, TILING.aligned)
        r = read(store_r, place, FORMAT_R)

    if ALGORITHM == SGD:
        p = formulas.sgd(p, g, hyper)
    elif ALGORITHM == MOMENTUM:
        p, m = formulas.momentum(p, g, m, hyper)
    elif ALGORITHM == ADAM:
        p, m, r = formulas.adam(p, g, m, r, hyper)
    else:
        p, m = formulas.lion(p, g, m, hyper)

    p = bounded(p, mask, TILING)
    largest_p = largest_bits(p)
    worst = largest_p
    if ALGORITHM != SGD:
        m = bounded(m, mask, TILING)
        largest_m = largest_bits(m)
        worst = tl.maximum(worst, largest_m)
    if ALGORITHM == ADAM:
        r = bounded(r, mask, TILING)
        largest_r = largest_bits(r)
        worst = tl.maximum(worst, largest_r)

    # A block with a NaN stays as it is, in every plane.
    finite = worst <= INFINITE
    tl.atomic_min(result + 1 + tl.zeros_like(worst), tl.load(item + INDEX), mask=inside & ~finite, sem="relaxed")
    mask, inside = mask & finite, inside & finite
    place = (at, mask, block, inside, counter)

    huge = tl.max(worst) >= HUGE
    saturated = count_saturated(p, huge, store_p[3], mask, FORMAT_P)
    if ALGORITHM != SGD:
        saturated += count_saturated(m, huge, store_m[3], mask, FORMAT_M)
    if ALGORITHM == ADAM:
        saturated += count_saturated(r, huge, store_r[3], mask, FORMAT_R)
    tl.atomic_add(result + tl.zeros_like(worst), saturated.to(tl.int64), mask=saturated > 0, sem="relaxed")

    key = tl.load(item + KEY)
    code, exponent = write(p, largest_p, store_p, place, key, ALONE, FORMAT_P, TILING, STOCHASTIC)
    if COUNTING:
        counts = result + (1 + tl.load(item + INDEX)) * COLUMNS
        count_update(before, p, code, exponent, mask, saturated, counts)
    if ALGORITHM != SGD:
        write(m, largest_m, store_m, place, key, FIRST_STATE, FORMAT_M, TILING, STOCHASTIC)
    if ALGORITHM == ADAM:
        write(r, largest_r, store_r, place, key, SECOND_STATE, FORMAT_R, TILING, STOCHASTIC)


class _Kind(NamedTuple):
    """What the parameters of one launch have in common."""

    formats: tuple[CompiledFormat, ...]
    gradient: int
    tiling: Tiling


def update(
    algorithm: Algorithm,
    grads: Sequence[Tensor],
    stores: Sequence[Sequence[Stored]],
    keys: Sequence[int],
    hypers: Sequence[Hyper],
    first_rows: Sequence[int],
    *,
    stochastic: bool,
    counting: bool,
) -> Updated:
    """One fused step over many parameters; see :func:`lowprec_plugin.arithmetic.ops.update_`."""
    device = grads[0].device
    if knobs.runtime.interpret and device.type != "cpu":
        raise ValueError("Triton's interpreter cannot follow addresses on a GPU: move the tensors to the CPU")
    launches: dict[_Kind, list[tuple[int, int]]] = defaultdict(list)
    for index, (grad, tensors, first_row) in enumerate(zip(grads, stores, first_rows, strict=True)):
        tiling, programs = tiling_of(grad.shape, tensors[0][1].block_size, first_row, _WARPS)
        planes = [plane for blocks, _ in tensors for plane in (blocks.codes, blocks.low)]
        if not on_boundaries([grad, *planes]):
            tiling = replace(tiling, aligned=False)
        formats = tuple(compiled(format) for _, format in tensors)
        launches[_Kind(formats, FLOAT_TYPES[grad.dtype], tiling)].append((index, programs))

    rows, numbers, grids = [], [], []
    for members in launches.values():
        first_program = 0
        for index, programs in members:
            rows.append([first_program, index, *_describe(grads[index], stores[index], keys[index], first_rows[index])])
            numbers.append([*hypers[index], *[0.0] * (HYPERS - len(hypers[index]))])
            first_program += programs
        grids.append(first_program)

    # The result and the table in one buffer, so that a step costs one copy to the device and one back.
    at = 1 + len(rows) * counting
    buffer = torch.zeros(at + len(rows), COLUMNS.value, dtype=torch.int64, pin_memory=device.type != "cpu")
    buffer[0, 1] = _NONE_REFUSED
    buffer[at:, : HYPER.value] = torch.tensor(rows)
    buffer.view(torch.float32)[at:, 2 * HYPER.value :] = torch.tensor(numbers)
    result, buffer = buffer.to(device, non_blocking=True).split([at, len(rows)])

    at = 0
    with torch.accelerator.device_index(device.index):
        for (kind, members), grid in zip(launches.items(), grids, strict=True):
            update_kernel[(grid,)](
                buffer[at:],
                result,
                len(members),
                ALGORITHM=int(algorithm),
                FORMATS=kind.formats,
                TYPE=kind.gradient,
                TILING=kind.tiling,
                STOCHASTIC=stochastic,
                COUNTING=counting,
                **kind.tiling.options(),
            )
            at += len(members)
    result = result.cpu()
    saturated, refused = result[0, :2].tolist()
    return Updated(saturated, None if refused == _NONE_REFUSED else refused, counts_of(result[1:]))


def _describe(grad: Tensor, tensors: Sequence[Stored], key: int, first_row: int) -> list[int]:
    """The columns of the table from the gradient up to the hyperparameters."""
    row = [grad.data_ptr(), *rows_of(grad.shape), first_row, signed(key)]
    for blocks, format in tensors:
        row += [0 if plane is None else plane.data_ptr() for plane in blocks]
        row.append(radix(format))
    return row + [0] * (HYPER.value - GRADIENT.value - len(row))
