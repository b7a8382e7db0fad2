"""The kernels, each with what it is compiled for: the usual ones, and all."""

# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from lowprec_plugin.arithmetic.formulas import ADAM, ALGORITHMS, Algorithm
from lowprec_plugin.arithmetic.reference.wire import WORD_LENGTHS
from lowprec_plugin.arithmetic.triton import convert, gradients
from lowprec_plugin.arithmetic.triton.launches import BFLOAT16, FLOAT16, FLOAT32
from lowprec_plugin.arithmetic.triton.rounding import compiled as for_format
from lowprec_plugin.arithmetic.triton.step import law_of, update_kernel
from lowprec_plugin.arithmetic.triton.tiles import Tiling
from lowprec_plugin.arithmetic.triton.wire import RESIDUAL, read_kernel, round_kernel, sum_kernel
from lowprec_plugin.formats import FixedPointFormat

TILINGS = {
    "flat": Tiling(256, 1, flat=True, aligned=True, wide=False),  # rows of whole blocks
    "rest": Tiling(256, 1, flat=False, aligned=True, wide=False),  # rows that end in a shorter block
    "huge": Tiling(256, 1, flat=False, aligned=True, wide=True),
    "odd": Tiling(32, 1, flat=False, aligned=False, wide=False),  # short rows of an odd length
    "vector": Tiling(1, 1, flat=True, aligned=True, wide=False),
}
#: Weights and state: as they are by default, and the two narrower settings.
_USUAL_PAIRS = (("fixed16", "fixed16"), ("fixed16", "fixed8"), ("fixed12", "fixed8"))
_PAIRS = (("fixed16", "fixed8", FLOAT32), ("fixed24", "fixed16", BFLOAT16), ("<4,12>", "fixed24", FLOAT32))
_FORMATS = ("fixed8", "fixed16", "fixed24", "fixed16^2", "<4,12>")
_ROUNDED = (("fixed16", "*fp32"), ("<4,12>", "*fp32"), ("<4,16>", "*fp32"), ("<4,12>", "*fp64"))  # not stored


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


def usual() -> Iterator[Kernel]:
    """What trainings launch whose settings are the usual ones. AdamW is Adam with other hyperparameters."""
    for name in ("fixed16", "fixed12", "fixed8^2", "<4,16>"):
        yield _quantize(name, "flat", stochastic=True)
    for name, out in (("fixed16", "*fp32"), ("fixed12", "*fp32"), ("fixed8", "*i16")):
        yield _dequantize(name, "flat", out)
    for name, type in _ROUNDED:
        yield _rounded(name, "flat", type, stochastic=True)
    for tiling in ("rest", "odd", "vector"):
        yield _quantize("fixed16", tiling, stochastic=True)
        yield _dequantize("fixed16", tiling, "*fp32")
        yield _update(ADAM, "fixed16", "fixed16", tiling, FLOAT32.value)
    for algorithm, (weight, state) in product(ALGORITHMS, _USUAL_PAIRS):
        if algorithm.states or state != weight:  # SGD has no state to tell 16/16 from 16/8
            yield _update(algorithm, weight, state, "flat", FLOAT32.value)
    for algorithm in ALGORITHMS:
        yield _update(algorithm, "fixed16", "fixed8", "flat", FLOAT32.value, counting=True)
    yield _update(ADAM, "fixed24", "fixed16", "flat", BFLOAT16.value)
    for name in ("fixed16", "fixed8"):
        yield _gather(name, "flat", "*fp32", added=False)
        yield _gather(name, "flat", "*fp32", added=True)
        yield _squares(name, "flat")
        yield _update(ADAM, "fixed16", "fixed8", "flat", FixedPointFormat.parse(name), factored=True)
    for word_length in WORD_LENGTHS:
        yield from _wire(word_length, FLOAT32.value, residual=True)
        yield from _wire(word_length, BFLOAT16.value, residual=False)


def every() -> Iterator[Kernel]:
    """The usual kernels, and most others that can be had."""
    names = set()
    for kernel in (*usual(), *_products()):
        if kernel.name not in names:
            yield kernel
        names.add(kernel.name)


def _products() -> Iterator[Kernel]:
    for name, tiling, stochastic in product(_FORMATS, TILINGS, (True, False)):
        yield _quantize(name, tiling, stochastic)
    for name, tiling, out in product(_FORMATS, TILINGS, ("*fp32", "*i16")):
        yield _dequantize(name, tiling, out)
    for (name, type), tiling, stochastic in product(_ROUNDED, TILINGS, (True, False)):
        yield _rounded(name, tiling, type, stochastic)
    for algorithm, tiling, (weight, state, gradient) in product(ALGORITHMS, TILINGS, _PAIRS):
        for counting in (False, True):
            yield _update(algorithm, weight, state, tiling, gradient.value, counting)
    for algorithm in ALGORITHMS:
        yield _update(algorithm, "fixed16", "fixed16", "flat", FLOAT16.value, stochastic=False)
    for name, tiling, type in product(("fixed8", "fixed16", "fixed24"), TILINGS, ("*fp32", "*i16")):
        for added, stochastic in product((True, False), (True, False)):
            yield _gather(name, tiling, type, added, stochastic)
    for name, tiling in product(("fixed8", "fixed16", "fixed24"), TILINGS):
        yield _squares(name, tiling)
    for algorithm, tiling, (weight, state, _) in product(ALGORITHMS, TILINGS, _PAIRS):
        for gradient, factored in product(map(FixedPointFormat.parse, ("fixed8", "fixed16")), (True, False)):
            yield _update(algorithm, weight, state, tiling, gradient, factored=factored)
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


def _gather(name: str, tiling: str, type: str, added: bool, stochastic: bool = True) -> Kernel:
    format = FixedPointFormat.parse(name)
    types, values = _planes(format)
    types |= {"grad": type, "rows": "i64", "row_length": "i64", "first_row": "i64", "key": "i64"}
    values |= {"FORMAT": for_format(format), "STOCHASTIC": stochastic}
    if added:
        types["factor"] = "*fp32"
    else:
        values["factor"] = None
    size, read = (4 if type == "*fp32" else 2), format.container_bytes
    title = f"gather {name} {'float32' if size == 4 else 'bfloat16'}{' added' * added}"
    title += f" {'stochastic' if stochastic else 'nearest'} {tiling}"
    return Kernel(title, gradients.gather_kernel, types, values, tiling, 4, size + read * added, read)


def _squares(name: str, tiling: str) -> Kernel:
    format = FixedPointFormat.parse(name)
    types, values = _planes(format)
    types |= {"out": "*fp64", "rows": "i64", "row_length": "i64"}
    values |= {"FORMAT": for_format(format)}
    size = format.container_bytes
    return Kernel(f"squares {name} {tiling}", gradients.squares_kernel, types, values, tiling, 4, size, 0)


def _update(
    algorithm: Algorithm,
    weight: str,
    state: str,
    tiling: str,
    gradient: int | FixedPointFormat,
    counting: bool = False,
    stochastic: bool = True,
    factored: bool = False,
) -> Kernel:
    names = [weight, *(f"{state}^2" if name in algorithm.squared else state for name in algorithm.states)]
    formats = [FixedPointFormat.parse(name) for name in names]
    size = sum(format.container_bytes for format in formats)
    chosen = tuple(for_format(format) for format in formats)
    values = {
        "LAW": law_of(algorithm),
        "STORED": len(names),
        "NUMBERS": len(algorithm.hypers),
        "FORMATS": chosen,
        "TYPE": for_format(gradient) if isinstance(gradient, FixedPointFormat) else gradient,
        "FACTORED": factored,
        "STOCHASTIC": stochastic,
        "COUNTING": counting,
    }
    if isinstance(gradient, FixedPointFormat):
        read, called = gradient.container_bytes, f"gradient {gradient}"
    else:
        read, called = (4, 2, 2)[gradient], ("float32", "bfloat16", "float16")[gradient]
    title = f"{algorithm} {'/'.join(names)} {called} {tiling}"
    title += " factor" * factored + " counting" * counting + " nearest" * (not stochastic)
    types = {"table": "*i64", "result": "*i64", "count": "i32"}
    return Kernel(title, update_kernel, types, values, tiling, 1, size + read, size)


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
