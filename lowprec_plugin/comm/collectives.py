"""Collectives of fixed-point blocks, for tensors of any shape, in plain PyTorch.

Each is called by every rank of the group, like its counterpart in :mod:`torch.distributed`, and blocks until it is
done. ``seed``, ``name`` and ``step`` key the random bits: give every tensor a name and every call a step.

Ranks first compare what they were called with (:mod:`lowprec_plugin.comm.handshake`). If they disagree, or one of them
refuses its arguments, all raise before anything is written. (What is no tensor or no process group is refused on its
rank alone: it says neither where to send nor to whom.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from lowprec_plugin.arithmetic import ops, wire_ops
from lowprec_plugin.arithmetic.random_bits import stream_of
from lowprec_plugin.arithmetic.reference.wire import Piece, blocks_of, chunk_bytes, chunk_of
from lowprec_plugin.comm.exchange import Exchange, Gradient, gather, keys
from lowprec_plugin.comm.exchange import reduce_scatter as exchange_reduce_scatter
from lowprec_plugin.comm.handshake import agreement
from lowprec_plugin.formats import check_integer, check_kind
from lowprec_plugin.tensor import FixedPointTensor

OPS = ("mean", "sum")


def all_reduce(
    tensor: Tensor,
    op: str = "mean",
    *,
    word_length: int = 16,
    group: dist.ProcessGroup | None = None,
    rounding: str = "stochastic",
    seed: int = 0,
    name: str = "",
    step: int = 0,
) -> Tensor:
    """Replace ``tensor`` by the mean (or sum) over the ranks, in place; every rank ends with the same bits.

    Each rank's numbers are rounded once on their way out and the result once on its way back. A tensor of fewer than
    256 elements travels as float32.

    Args:
        tensor: float32, bfloat16 or float16, of the same shape and dtype on every rank.
        op: ``"mean"`` or ``"sum"``.
        word_length: bits on the wire: 4, 8, 12 or 16.
        group: the process group; the default one if ``None``.
        rounding: ``"stochastic"`` or ``"nearest"``.
        seed, name, step: key the random bits; each rank's own rounding differs from the others'.

    Returns:
        ``tensor``. Where a rank had a NaN or an infinity, its block of 256 is NaN on every rank.

    Raises:
        ValueError: on every rank alike, before anything is written, if the ranks' arguments differ, or one has a word
            length, rounding, op or dtype that there is not, or a fixed-point or sharded tensor.
    """
    with _agreement("all_reduce", tensor, group) as terms:
        _check_op(op)
        terms |= {"op": op, "shape": list(tensor.shape)}
        terms |= _checked(tensor, word_length, rounding, seed, name, step)
    if dist.get_world_size(group) == 1:
        return tensor
    flat = ops.readable(tensor.detach()).view(-1)
    key, sum_key = keys(stream_of(seed, name), step, dist.get_rank(group))
    Exchange(word_length, rounding, group, op == "mean").run([Gradient(flat, key, sum_key)])
    return _give_back(tensor, flat)


def reduce_scatter(
    output: Tensor,
    input: Tensor,  # torch's name
    op: str = "mean",
    *,
    word_length: int = 16,
    group: dist.ProcessGroup | None = None,
    rounding: str = "stochastic",
    seed: int = 0,
    name: str = "",
    step: int = 0,
) -> Tensor:
    """Write to ``output`` this rank's share of the mean (or sum) of ``input`` over the ranks.

    ``input`` is cut into one equal share per rank, as by ``torch.distributed.reduce_scatter_tensor``. Each number is
    rounded once, on its way out; the sum is float32's, in rank order.

    Args:
        output: of a share's number of elements. Changed in place.
        input: of as many elements as all outputs together.
        op, word_length, group, rounding, seed, name, step: as in :func:`all_reduce`.

    Returns:
        ``output``.

    Raises:
        ValueError: as :func:`all_reduce`, and if the sizes do not match.
    """
    with _agreement("reduce_scatter", input, group) as terms:
        _check_op(op)
        terms |= {"op": op, "elements": input.numel()}
        terms |= _checked(input, word_length, rounding, seed, name, step)
        ranks, share = dist.get_world_size(group), _checked_output(output).numel()
        if share * ranks != input.numel():
            raise ValueError(f"input has {input.numel()} elements, but {ranks} ranks times output's {share} are needed")
        if not output.is_contiguous():
            raise ValueError(
                f"output of strides {output.stride()} is not contiguous: make it so, or copy from one that is"
            )
    exchange = Exchange(word_length, rounding, group, op == "mean")
    exchange_reduce_scatter(output, input, exchange, stream_of(seed, name), step)
    return output


def all_gather(
    output: Tensor,
    input: Tensor,  # torch's name
    *,
    word_length: int = 16,
    group: dist.ProcessGroup | None = None,
    rounding: str = "stochastic",
    seed: int = 0,
    name: str = "",
    step: int = 0,
) -> Tensor:
    """Write every rank's ``input``, rounded once, one behind the other to ``output``; the same bits on every rank.

    Args:
        output: of as many elements as all inputs together. Changed in place.
        input: of the same number of elements on every rank.
        word_length, group, rounding, seed, name, step: as in :func:`all_reduce`.

    Returns:
        ``output``.

    Raises:
        ValueError: as :func:`all_reduce`, and if the sizes do not match.
    """
    with _agreement("all_gather", input, group) as terms:
        terms |= {"elements": input.numel(), **_checked(input, word_length, rounding, seed, name, step)}
        ranks, share = dist.get_world_size(group), input.numel()
        if share * ranks != _checked_output(output).numel():
            raise ValueError(
                f"output has {output.numel()} elements, but {ranks} ranks times input's {share} are needed"
            )
    rank = dist.get_rank(group)
    blocks = blocks_of(share)
    key, _ = keys(stream_of(seed, name), step, rank)
    sent = torch.zeros(chunk_bytes(blocks, word_length), dtype=torch.uint8, device=input.device)
    piece = Piece(ops.readable(input.detach()).view(-1), 0, 0, key, 0)
    wire_ops.round_([piece], chunk_of(sent, blocks, word_length), word_length, rounding)
    received, work = gather(sent, group)
    work.wait()
    flat = ops.readable(output.detach()).view(ranks, share)
    for row, values in zip(received, flat, strict=True):
        wire_ops.read_([piece._replace(values=values)], chunk_of(row, blocks, word_length), word_length)
    return _give_back(output, flat)


@contextmanager
def _agreement(collective: str, tensor: Tensor, group: dist.ProcessGroup | None) -> Iterator[dict[str, Any]]:
    check_kind(tensor, Tensor, "tensor" if collective == "all_reduce" else "input")
    if group is not None and not isinstance(group, dist.ProcessGroup):  # nor has this rank others to tell
        raise ValueError(f"group={group!r} is not a process group that this rank belongs to")
    with agreement(tensor.device, group) as terms:
        terms["the collective"] = collective
        yield terms


def _check_op(op: str) -> None:
    if op not in OPS:
        raise ValueError(f"op={op!r} is not one of {OPS}")


def _checked(tensor: Tensor, word_length: int, rounding: str, seed: int, name: str, step: int) -> dict[str, Any]:
    """The terms of every collective."""
    wire_ops.check_word_length(word_length)
    ops.check_rounding(rounding)
    check_integer(seed, "seed")
    check_integer(step, "step")
    check_kind(name, str, "name")
    _check_floats(tensor)
    return {
        "dtype": tensor.dtype, "word_length": word_length, "rounding": rounding, "seed": seed, "name": name,
        "step": step,
    }  # fmt: skip


def _checked_output(output: Tensor) -> Tensor:
    check_kind(output, Tensor, "output")
    _check_floats(output)
    return output


def _check_floats(tensor: Tensor) -> None:
    if isinstance(tensor, FixedPointTensor | DTensor):  # has no memory of its own that could be read or written
        raise ValueError(
            f"a {type(tensor).__name__} is not floats in memory: give floats (dequantize()), or of shards those of "
            "this rank (to_local())"
        )
    if tensor.dtype not in ops.GRADIENT_DTYPES:
        raise ValueError(
            f"only float32, bfloat16 and float16 tensors can travel in fixed-point, not {tensor.dtype}: convert it"
        )


def _give_back(tensor: Tensor, flat: Tensor) -> Tensor:
    if flat.data_ptr() != tensor.data_ptr():
        tensor.detach().copy_(flat.view(tensor.shape))
    return tensor
