"""One optimizer step over many parameters, in one launch per kind of tensor.

The parameters of a call that share formats, gradient type and tiling are one launch. A table on the device describes
each in one row: where its planes are, its shape, its keys, its hyperparameters. A program finds its parameter by
bisecting the column of first programs, reads its tile, evaluates the formula of :mod:`..formulas` in
registers and writes the tile back.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# Tuples grow while a kernel is compiled:
# mypy: disable-error-code="assignment, misc"
from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.formulas import HYPERS, Algorithm
from lowprec_plugin.arithmetic.random_bits import ROLES
from lowprec_plugin.arithmetic.triton import formulas
from lowprec_plugin.arithmetic.triton.counting import count_update, counts_of
from lowprec_plugin.arithmetic.triton.launches import FLOAT_TYPES, load_floats, pointer, row_of
from lowprec_plugin.arithmetic.triton.random import random_bits
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
from lowprec_plugin.arithmetic.triton.tiles import Tiling, locate, on_boundaries, signed, tiling_of
from lowprec_plugin.arithmetic.updates import Update, Updated
from lowprec_plugin.formats import FixedPointFormat, rows_of

#: The roles in random bits of the parameter and its states.
ROLE = tl.constexpr(ROLES)
# The table's columns, 64-bit words: the parameter's first program and its index, its gradient (or the factor of one in
# codes), shape and key; three planes and static exponent of each of up to three stored tensors, and of a gradient in
# codes; the hyperparameters, two a word.
INDEX, GRADIENT, ROWS, ROW_LENGTH, FIRST_ROW, KEY, STORES = (tl.constexpr(column) for column in range(1, 8))
STORE = tl.constexpr(4)
CODED = tl.constexpr(7 + 3 * 4)
HYPER = tl.constexpr(7 + 4 * 4)
COLUMNS = tl.constexpr(7 + 4 * 4 + HYPERS // 2)
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
def gradient(item, place, TYPE: tl.constexpr, FACTORED: tl.constexpr, TILING: tl.constexpr):
    """The tile of a gradient, float32."""
    at, mask, _, _, _ = place
    if is_format(TYPE):
        g = read(stored(item + CODED, TYPE, TILING.aligned), place, TYPE)
        if FACTORED:
            g *= tl.load(pointer(tl.load(item + GRADIENT), tl.float32, False))
    else:
        g = load_floats(tl.load(item + GRADIENT), at, mask, TYPE, TILING.aligned)
    return g


@triton.jit
def bounded(x, mask, TILING: tl.constexpr):
    """``x`` with zeros beyond the ends of its rows, where the formulas may have made anything."""
    if not TILING.flat:
        x = tl.where(mask, x, 0.0)
    return x


@triton.constexpr_function
def of(values, k):
    """``values[k]`` of what is known while compiling; indexed in a kernel itself it is not known to Triton 3.6."""
    return values[k]


@triton.constexpr_function
def is_format(type):
    """Whether a gradient's type is a format."""
    return isinstance(type, CompiledFormat)


@triton.jit(do_not_specialize=["count"])
def update_kernel(
    table,
    result,
    count: tl.int32,
    LAW: tl.constexpr,
    STORED: tl.constexpr,
    NUMBERS: tl.constexpr,
    FORMATS: tl.constexpr,
    TYPE: tl.constexpr,
    FACTORED: tl.constexpr,
    TILING: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    COUNTING: tl.constexpr,
):
    """Update the ``count`` parameters of ``table`` by ``LAW``.

    ``result`` is how many saturated and the first index refused; when counting, a row of counts by index follows it.

    Args:
        STORED: tensors that the law updates: the parameter and its states. ``FORMATS`` are theirs.
        NUMBERS: the law's hyperparameters.
        TYPE: of gradients that are floats; or the format of those in codes, ``FACTORED`` if each has a factor.
    """
    item = row_of(tl.program_id(0), table, count, COLUMNS)
    program = tl.program_id(0) - tl.load(item)
    rows, row_length = tl.load(item + ROWS), tl.load(item + ROW_LENGTH)
    place = locate(program, rows, row_length, tl.load(item + FIRST_ROW), TILING)
    at, mask, block, inside, counter = place
    hyper = (item + HYPER).to(tl.pointer_type(tl.float32))
    g = gradient(item, place, TYPE, FACTORED, TILING)
    stores, values, numbers = (), (), ()
    for k in tl.static_range(STORED):
        store = stored(item + STORES + k * STORE, of(FORMATS, k), TILING.aligned)
        stores += (store,)
        values += (read(store, place, of(FORMATS, k)),)
    for k in tl.static_range(NUMBERS):
        numbers += (tl.load(hyper + k),)
    before = values[0]
    computed = LAW(before, g, *values[1:], *numbers)

    values, largest = (), ()
    for k in tl.static_range(STORED):
        value = bounded(computed[k], mask, TILING)
        values += (value,)
        largest += (largest_bits(value),)
        if k == 0:  # noqa: SIM108
            worst = largest[0]
        else:
            worst = tl.maximum(worst, largest[k])

    # A block with a NaN stays as it is, in every plane.
    finite = worst <= INFINITE
    tl.atomic_min(result + 1 + tl.zeros_like(worst), tl.load(item + INDEX), mask=inside & ~finite, sem="relaxed")
    mask, inside = mask & finite, inside & finite
    place = (at, mask, block, inside, counter)

    huge = tl.max(worst) >= HUGE
    saturated = count_saturated(values[0], huge, stores[0][3], mask, of(FORMATS, 0))
    for k in tl.static_range(1, STORED):
        saturated += count_saturated(values[k], huge, stores[k][3], mask, of(FORMATS, k))
    tl.atomic_add(result + tl.zeros_like(worst), saturated.to(tl.int64), mask=saturated > 0, sem="relaxed")

    key = tl.load(item + KEY)
    for k in tl.static_range(STORED):
        code, exponent = write(
            values[k],
            largest[k],
            stores[k],
            place,
            key,
            of(ROLE, k),
            of(FORMATS, k),
            TILING,
            STOCHASTIC,
        )
        if COUNTING and k == 0:
            counts = result + (1 + tl.load(item + INDEX)) * COLUMNS
            count_update(before, values[0], code, exponent, mask, saturated, counts)


@cache
def law_of(algorithm: Algorithm) -> Any:
    """The formula of ``algorithm`` on the device.

    Raises:
        ValueError: if there is none, or one with other hyperparameters.
    """
    law = getattr(formulas, algorithm.name, None)
    if law is None or tuple(law.arg_names[2 + len(algorithm.states) :]) != algorithm.hypers:
        takes = "there is none" if law is None else f"it takes {', '.join(law.arg_names)}"
        raise ValueError(
            f"{algorithm} needs a Triton formula of that name, which takes the parameter, its gradient, "
            f"{len(algorithm.states)} states and {', '.join(algorithm.hypers)}: {takes}"
        )
    return law


class _Kind(NamedTuple):
    """What the parameters of one launch have in common."""

    formats: tuple[CompiledFormat, ...]
    gradient: int | CompiledFormat
    factored: bool
    tiling: Tiling


def update(step: Update) -> Updated:
    """One fused step over many parameters; see :func:`lowprec_plugin.arithmetic.ops.update_`."""
    device = step.stores[0][0].blocks.codes.device
    if knobs.runtime.interpret and device.type != "cpu":
        raise ValueError("Triton's interpreter cannot follow addresses on a GPU: move the tensors to the CPU")
    launches: dict[_Kind, list[tuple[int, int]]] = defaultdict(list)
    for index, (grad, tensors, first_row) in enumerate(zip(step.grads, step.stores, step.first_rows, strict=True)):
        tiling, programs = tiling_of(tensors[0].blocks.codes.shape, tensors[0].format.block_size, first_row, _WARPS)
        planes = [plane for blocks, _ in tensors for plane in (blocks.codes, blocks.low)]
        planes += [grad] if isinstance(grad, Tensor) else [grad.blocks.codes, grad.blocks.low]
        if not on_boundaries(planes):
            tiling = replace(tiling, aligned=False)
        formats = tuple(compiled(format) for _, format in tensors)
        kind = FLOAT_TYPES[grad.dtype] if isinstance(grad, Tensor) else compiled(grad.format)
        factored = not isinstance(grad, Tensor) and grad.factor is not None
        launches[_Kind(formats, kind, factored, tiling)].append((index, programs))

    rows, numbers, grids = [], [], []
    for members in launches.values():
        first_program = 0
        for index, programs in members:
            rows.append([first_program, index, *_describe(step, index)])
            numbers.append([*step.hypers[index], *[0.0] * (HYPERS - len(step.hypers[index]))])
            first_program += programs
        grids.append(first_program)

    # The result and the table in one buffer, so that a step costs one copy to the device and one back.
    at = 1 + len(rows) * step.counting
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
                LAW=law_of(step.algorithm),
                STORED=1 + len(step.algorithm.states),
                NUMBERS=len(step.algorithm.hypers),
                FORMATS=kind.formats,
                TYPE=kind.gradient,
                FACTORED=kind.factored,
                TILING=kind.tiling,
                STOCHASTIC=step.stochastic,
                COUNTING=step.counting,
                **kind.tiling.options(),
            )
            at += len(members)
    result = result.cpu()
    saturated, refused = result[0, :2].tolist()
    return Updated(saturated, None if refused == _NONE_REFUSED else refused, counts_of(result[1:]))


def _describe(step: Update, index: int) -> list[int]:
    """The columns of the table from the gradient up to the hyperparameters."""
    grad, tensors = step.grads[index], list(step.stores[index])
    floats = grad if isinstance(grad, Tensor) else grad.factor
    address = 0 if floats is None else floats.data_ptr()
    place = [*rows_of(tensors[0].blocks.codes.shape), step.first_rows[index], signed(step.keys[index])]
    row = [address, *place, *(column for store in tensors for column in _columns(*store))]
    row += [0] * (CODED.value - GRADIENT.value - len(row))
    return row + ([0] * STORE.value if isinstance(grad, Tensor) else _columns(grad.blocks, grad.format))


def _columns(blocks: Blocks, format: FixedPointFormat) -> list[int]:
    """Of one stored tensor: its planes and static exponent."""
    return [*(0 if plane is None else plane.data_ptr() for plane in blocks), radix(format)]
