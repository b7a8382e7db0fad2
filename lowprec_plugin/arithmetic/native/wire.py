"""The native kernels of :mod:`lowprec_plugin.arithmetic.reference.wire`, called through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from lowprec_plugin.arithmetic.native import library as native
from lowprec_plugin.arithmetic.reference.wire import BLOCK, Chunk, Piece


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
    """See :func:`lowprec_plugin.arithmetic.reference.wire.round_`."""
    blocks = len(chunk.exponents)
    wire = _Wire(*_addresses(chunk, blocks, word_length), word_length=word_length, stochastic=stochastic)
    _call("lowprec_wire_round", pieces, [piece.key for piece in pieces], wire, blocks)


def sum_(
    pieces: Sequence[Piece], chunks: Sequence[Chunk], out: Chunk, word_length: int, divisor: float, stochastic: bool
) -> None:
    """See :func:`lowprec_plugin.arithmetic.reference.wire.sum_`; the chunks must lie at equal distances."""
    blocks = len(out.exponents)
    first, *others = (_addresses(chunk, blocks, word_length) for chunk in chunks)
    stride = others[0][0] - first[0] if others else 0
    for rank, each in enumerate(others, 1):
        assert each == (first[0] + rank * stride, first[1] + rank * stride), f"the chunk of rank {rank} lies elsewhere"
    to = _addresses(out, blocks, word_length)
    wire = _Wire(*first, *to, stride, divisor, len(chunks), word_length, stochastic)
    _call("lowprec_wire_sum", pieces, [piece.sum_key for piece in pieces], wire, blocks)


def read_(pieces: Sequence[Piece], chunk: Chunk, word_length: int) -> None:
    """See :func:`lowprec_plugin.arithmetic.reference.wire.read_`; ``values`` in float32 or bfloat16."""
    assert all(piece.values.dtype in (torch.float32, torch.bfloat16) for piece in pieces), "float16 is read as float32"
    blocks = len(chunk.exponents)
    wire = _Wire(*_addresses(chunk, blocks, word_length), word_length=word_length)
    _call("lowprec_wire_read", pieces, [0] * len(pieces), wire, blocks)


def _call(name: str, pieces: Sequence[Piece], keys: Sequence[int], wire: _Wire, blocks: int) -> None:
    """Call a kernel on pieces of chunks of so many blocks."""
    filled = (_Piece * len(pieces))()
    for item, piece, key in zip(filled, pieces, keys, strict=True):
        assert 0 <= piece.place <= blocks - piece.blocks, f"{piece.blocks} blocks from {piece.place} on, of {blocks}"
        values = piece.values
        item.values, item.elements = native.address(values, values.dtype, values.numel()), values.numel()
        item.type = native.FLOAT_TYPES[values.dtype]
        item.first_block, item.place, item.key = piece.first_block, piece.place, key
        if piece.residual is not None:
            codes, _, exponents = piece.residual
            assert exponents is not None
            item.residual_codes = native.address(codes, torch.int8, piece.blocks * BLOCK)
            item.residual_exponents = native.address(exponents, torch.int8, piece.blocks)
    getattr(native.library(), name)(filled, len(pieces), ctypes.byref(wire), torch.get_num_threads())


def _addresses(chunk: Chunk, blocks: int, word_length: int) -> tuple[int, int]:
    """Of a chunk's codes and of its exponents."""
    codes = native.address(chunk.codes, torch.uint8, blocks * BLOCK * word_length // 8)
    return codes, native.address(chunk.exponents, torch.int8, blocks)
