"""The native CPU kernels: a shared library built from ``csrc`` at install, called through ctypes.

The library knows nothing of torch: it is given pointers and sizes, so one build serves every torch version. Where it
could not be built, :func:`available` says why and the reference backend serves instead.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.formulas import ALGORITHMS, HYPERS, STATES, Algorithm
from lowprec_plugin.arithmetic.random_bits import Draw
from lowprec_plugin.arithmetic.update_counts import UpdateCounts
from lowprec_plugin.arithmetic.updates import StoredGradient, Update, Updated
from lowprec_plugin.formats import FixedPointFormat, rows_of

_ABI = 8
FLOAT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_FLOAT64, _CODES, _EXPONENTS = 3, 4, 5


class Store(ctypes.Structure):
    """``lowprec_store`` of ``csrc/lowprec.h``."""

    _fields_ = [
        ("codes", ctypes.c_void_p),
        ("low", ctypes.c_void_p),
        ("exponents", ctypes.c_void_p),
        ("word_length", ctypes.c_int32),
        ("exponent", ctypes.c_int32),
        ("block_size", ctypes.c_int32),
        ("squared", ctypes.c_int32),
    ]


class CountsStruct(ctypes.Structure):
    """``lowprec_counts`` of ``csrc/lowprec.h``."""

    _fields_ = [
        ("elements", ctypes.c_int64),
        ("moved", ctypes.c_int64),
        ("lost", ctypes.c_int64),
        ("unchanged", ctypes.c_int64),
        ("update_squares", ctypes.c_double),
        ("error_squares", ctypes.c_double),
    ]


class Item(ctypes.Structure):
    """``lowprec_item`` of ``csrc/lowprec.h``."""

    _fields_ = [
        ("grad", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("bits", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("row_length", ctypes.c_int64),
        ("first_row", ctypes.c_int64),
        ("key", ctypes.c_uint64),
        ("grad_type", ctypes.c_int32),
        ("out_type", ctypes.c_int32),
        ("saturated", ctypes.c_int64),
        ("refused", ctypes.c_int32),
        ("fresh", ctypes.c_int32),
        ("hyper", ctypes.c_float * HYPERS),
        ("factor", ctypes.c_float),
        ("reserved", ctypes.c_int32),
        ("gradient", Store),
        ("stores", Store * (1 + STATES)),
        ("counts", ctypes.POINTER(CountsStruct)),
    ]


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    path = Path(__file__).with_name("_native.so")
    if not path.exists():
        return None, "the native kernels were not built at install (is there a C++ compiler? reinstall with -v to see)"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"the native kernels do not load: {error}"
    if library.lowprec_abi() != _ABI:
        return None, f"the native kernels are of another version of this package: reinstall it (at {path})"
    items, i32, i64 = ctypes.POINTER(Item), ctypes.c_int32, ctypes.c_int64
    library.lowprec_isa.restype = library.lowprec_formula.restype = ctypes.c_char_p
    for algorithm in ALGORITHMS:
        needed, found = _declared(algorithm), library.lowprec_formula(algorithm.number) or b"none"
        if found.decode() != needed:
            return None, (
                f"formula {algorithm.number} of the native kernels is {found.decode()}, not {needed}: they are of "
                f"another version of this package: reinstall it (at {path})"
            )
    for name, arguments, result in (
        ("lowprec_quantize", [items, i64, i32, i32], None),
        ("lowprec_dequantize", [items, i64, i32], None),
        ("lowprec_gather", [items, i64, i32, i32], None),
        ("lowprec_squares", [items, i32], ctypes.c_double),
        ("lowprec_round", [items, i64, i32, i32], None),
        ("lowprec_update", [i32, items, i64, i32, i32], i32),
        ("lowprec_first_nonfinite", [items, i64, i32], i64),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    for name in ("lowprec_wire_round", "lowprec_wire_sum", "lowprec_wire_read"):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.c_void_p, i64, ctypes.c_void_p, i32], None
    return library, "native kernels"


def _declared(algorithm: Algorithm) -> str:
    """As ``csrc/kernels.inl`` declares a formula: its name, how many states it has, and its hyperparameters."""
    return f"{algorithm.name}/{len(algorithm.states)}({', '.join(algorithm.hypers)})"


def available() -> tuple[bool, str]:
    """Whether the native kernels can be used, and if not, why."""
    library, reason = _load()
    return library is not None, reason


def instruction_set() -> str:
    """The instruction set in use: ``"baseline"``, ``"avx2"`` or ``"avx512"``."""
    return str(library().lowprec_isa().decode())


def select_instruction_set(name: str) -> None:
    """Use the kernels of another instruction set. For tests: the best one is chosen at load.

    Raises:
        ValueError: if this machine does not have it.
    """
    if library().lowprec_select(name.encode()) != 0:
        raise ValueError(f"this machine has no {name!r}")


def library() -> ctypes.CDLL:
    """The loaded kernels, which must be available."""
    library, reason = _load()
    assert library is not None, reason
    return library


def address(tensor: Tensor, dtype: torch.dtype, elements: int) -> int:
    """Where ``tensor`` lies, which must be what a kernel takes it for: it is given no more than this."""
    found, taken = (tensor.dtype, tensor.numel(), tensor.is_contiguous()), (dtype, elements, True)
    assert found == taken, f"(dtype, elements, contiguous): {found} is not {taken}"
    return tensor.data_ptr()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _place(item: Item, shape: torch.Size, first_row: int) -> None:
    """Rows of which length, and where they start in the whole tensor."""
    assert 0 <= first_row < 1 << 63, first_row  # ctypes would cut it, and say nothing
    item.rows, item.row_length = rows_of(shape)
    item.first_row = first_row


def _give(item: Item, x: Tensor, draw: Draw) -> None:
    """What is to be rounded, and with which random bits."""
    item.grad, item.grad_type = x.data_ptr(), _FLOAT64 if x.dtype == torch.float64 else FLOAT_TYPES[x.dtype]
    item.bits, item.key = _pointer(draw.bits), draw.key
    _place(item, x.shape, draw.first_row)


def _fill(store: Store, blocks: Blocks, format: FixedPointFormat) -> None:
    store.codes = blocks.codes.data_ptr()
    store.low = _pointer(blocks.low)
    store.exponents = _pointer(blocks.exponents)
    store.word_length = format.word_length
    store.exponent = 0 if format.dynamic else format.static_exponent
    store.block_size = format.block_size
    store.squared = format.squared


def quantize(x: Tensor, format: FixedPointFormat, out: Blocks, draw: Draw) -> int:
    """Round ``x`` into ``out``; see :func:`lowprec_plugin.arithmetic.ops.quantize`. Returns the saturated elements."""
    items = (Item * 1)()
    item = items[0]
    _give(item, x, draw)
    _fill(item.stores[0], out, format)
    library().lowprec_quantize(items, 1, draw.stochastic, torch.get_num_threads())
    return int(item.saturated)


def dequantize(blocks: Blocks, format: FixedPointFormat, out: Tensor) -> None:
    """Write the stored numbers to ``out`` (float32 or bfloat16, contiguous)."""
    items = (Item * 1)()
    item = items[0]
    dtype = torch.bfloat16 if out.dtype == torch.bfloat16 else torch.float32
    item.out, item.out_type = address(out, dtype, blocks.codes.numel()), FLOAT_TYPES[dtype]
    item.rows, item.row_length = rows_of(blocks.codes.shape)
    _fill(item.stores[0], blocks, format)
    library().lowprec_dequantize(items, 1, torch.get_num_threads())


def rounded(x: Tensor, format: FixedPointFormat, out: Tensor, draw: Draw) -> int:
    """Write to float32 ``out`` the numbers of ``format`` that ``x`` is rounded to. Returns the saturated ones.

    ``x`` is float32, or float64 if the format is static.
    """
    items = (Item * 1)()
    item = items[0]
    _give(item, x, draw)
    item.out, item.out_type = address(out, torch.float32, x.numel()), FLOAT_TYPES[out.dtype]
    store = item.stores[0]
    store.exponents = out.data_ptr() if format.dynamic else None  # which of the two it is; nothing is written there
    store.word_length, store.block_size = format.word_length, format.block_size
    store.exponent = 0 if format.dynamic else format.static_exponent
    library().lowprec_round(items, 1, draw.stochastic, torch.get_num_threads())
    return int(item.saturated)


def update(step: Update) -> Updated:
    """One fused step over many parameters; see :func:`lowprec_plugin.arithmetic.ops.update_`.

    Raises:
        ValueError: for an algorithm that the kernels do not have. Nothing is written.
    """
    items = (Item * len(step.grads))()
    given = zip(items, step.grads, step.stores, step.keys, step.hypers, step.first_rows, strict=True)
    for item, grad, tensors, key, hyper, first_row in given:
        if isinstance(grad, StoredGradient):
            item.grad_type, item.factor = _CODES, factor_of(grad.factor)
            _fill(item.gradient, grad.blocks, grad.format)
        else:
            item.grad, item.grad_type = grad.data_ptr(), FLOAT_TYPES[grad.dtype]
        _place(item, tensors[0].blocks.codes.shape, first_row)
        item.key = key
        item.hyper[: len(hyper)] = hyper
        for store, (blocks, format) in zip(item.stores, tensors, strict=False):
            _fill(store, blocks, format)
    counts = (CountsStruct * len(items))() if step.counting else ()
    for item, each in zip(items, counts, strict=False):
        item.counts = ctypes.pointer(each)
    number, threads = step.algorithm.number, torch.get_num_threads()
    if library().lowprec_update(number, items, len(items), step.stochastic, threads) != 0:
        raise ValueError(f"the native kernels have no formula {number} ({step.algorithm})")
    refused = next((index for index, item in enumerate(items) if item.refused), None)
    done = [
        UpdateCounts(saturated=item.saturated, **{field[0]: getattr(each, field[0]) for field in CountsStruct._fields_})
        for item, each in zip(items, counts, strict=False)
    ]
    return Updated(sum(item.saturated for item in items), refused, done)


def gather(grad: Tensor, blocks: Blocks, format: FixedPointFormat, factor: Tensor | None, draw: Draw) -> None:
    """Add ``grad`` to a gradient in codes; see :func:`lowprec_plugin.arithmetic.ops.gather_`."""
    items = (Item * 1)()
    item = items[0]
    _give(item, grad, draw)
    item.fresh, item.factor = factor is None, factor_of(factor)
    _fill(item.stores[0], blocks, format)
    library().lowprec_gather(items, 1, draw.stochastic, torch.get_num_threads())


def squares(blocks: Blocks, format: FixedPointFormat) -> Tensor:
    """The sum of the squares of what is stored; see :func:`lowprec_plugin.arithmetic.ops.squares`."""
    items = (Item * 1)()
    _place(items[0], blocks.codes.shape, 0)
    _fill(items[0].stores[0], blocks, format)
    return torch.tensor(library().lowprec_squares(items, torch.get_num_threads()), dtype=torch.float64)


def factor_of(factor: Tensor | None) -> float:
    """The number that ``factor`` is, 1 if there is none."""
    return 1.0 if factor is None else float(factor)


def first_nonfinite(tensors: Sequence[Tensor]) -> int | None:
    """The index of the first tensor with a NaN or an infinity, or that is exponents of a gradient with one."""
    items = (Item * len(tensors))()
    for item, tensor in zip(items, tensors, strict=True):
        item.grad = tensor.data_ptr()
        item.grad_type = _EXPONENTS if tensor.dtype == torch.int8 else FLOAT_TYPES[tensor.dtype]
        item.rows, item.row_length = 1, tensor.numel()
    first = library().lowprec_first_nonfinite(items, len(tensors), torch.get_num_threads())
    return None if first < 0 else int(first)
