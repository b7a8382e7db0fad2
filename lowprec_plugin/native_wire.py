"""The native kernels of :mod:`lowprec_plugin.wire_reference`, called through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from lowprec_plugin import native
from lowprec_plugin.wire_reference import Chunk, Piece


class _Piece(ctypes.Structure):
    """``lowprec_piece`` of ``csrc/lowprec.h``."""

    _fields_ = [
        ("values", ctypes.c_void_p),
        ("residual_codes", ctypes.c_void_p),
        ("residual_exponents", ctypes.c_void_p),
        ("elements", ctypes.c_int64),
        ("first_block", ctypes.c_int64),
        ("place", ctypes.c_int64),
        ("key", ctypes.c_uint64),
        ("type", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class _Wire(ctypes.Structure):
    """``lowprec_wire`` of ``csrc/lowprec.h``."""

    _fields_ = [
        ("codes", ctypes.c_void_p),
        ("exponents", ctypes.c_void_p),
        ("out_codes", ctypes.c_void_p),
        ("out_exponents", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("divisor", ctypes.c_float),
        ("ranks", ctypes.c_int32),
        ("word_length", ctypes.c_int32),
        ("stochastic", ctypes.c_int32),
    ]


def round_(pieces: Sequence[Piece], chunk: Chunk, word_length: int, stochastic: bool) -> None:
    """See :func:`lowprec_plugin.wire_reference.round_`."""
    wire = _Wire(chunk.codes.data_ptr(), chunk.exponents.data_ptr(), word_length=word_length, stochastic=stochastic)
    _call("lowprec_wire_round", pieces, [piece.key for piece in pieces], wire)


def sum_(
    pieces: Sequence[Piece], chunks: Sequence[Chunk], out: Chunk, word_length: int, divisor: float, stochastic: bool
) -> None:
    """See :func:`lowprec_plugin.wire_reference.sum_`; the chunks must lie at equal distances."""
    first = chunks[0]
    stride = chunks[1].codes.data_ptr() - first.codes.data_ptr() if len(chunks) > 1 else 0
    wire = _Wire(
        first.codes.data_ptr(), first.exponents.data_ptr(), out.codes.data_ptr(), out.exponents.data_ptr(),
        stride, divisor, len(chunks), word_length, stochastic,
    )  # fmt: skip
    _call("lowprec_wire_sum", pieces, [piece.sum_key for piece in pieces], wire)


def read_(pieces: Sequence[Piece], chunk: Chunk, word_length: int) -> None:
    """See :func:`lowprec_plugin.wire_reference.read_`; ``values`` in float32 or bfloat16."""
    wire = _Wire(chunk.codes.data_ptr(), chunk.exponents.data_ptr(), word_length=word_length)
    _call("lowprec_wire_read", pieces, [0] * len(pieces), wire)


def _call(name: str, pieces: Sequence[Piece], keys: Sequence[int], wire: _Wire) -> None:
    filled = (_Piece * len(pieces))()
    for item, piece, key in zip(filled, pieces, keys, strict=True):
        item.values, item.elements, item.type = piece.values.data_ptr(), piece.values.numel(), _type(piece.values)
        item.first_block, item.place, item.key = piece.first_block, piece.place, key
        if piece.residual is not None:
            assert piece.residual.exponents is not None
            item.residual_codes = piece.residual.codes.data_ptr()
            item.residual_exponents = piece.residual.exponents.data_ptr()
    getattr(native.library(), name)(filled, len(pieces), ctypes.byref(wire), torch.get_num_threads())


def _type(values: Tensor) -> int:
    return native.FLOAT_TYPES[values.dtype]
