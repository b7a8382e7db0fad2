"""One all-reduce in fixed-point, as a program of two collectives of bytes.

Each rank rounds its gradients to packed blocks (:mod:`lowprec_plugin.arithmetic.reference.wire`). The blocks are shared
out: rank ``r`` is sent everybody's ``r``-th slice (``all_to_all_single``), sums it in float32 in rank order, rounds the
mean once more, and sends it to all (``all_gather_into_tensor``). Every rank reads the same bytes, so every rank ends
with the same bits. Per element and rank that sends ``2 (N - 1) / N * (word_length / 8 + 1 / 256)`` bytes.

Small gradients travel as float32 behind the blocks of the same two collectives: one flat row, of which rank ``r`` is
sent everybody's ``r``-th slice, sums it in rank order and sends the mean to all. That sends ``2 (N - 1) / N * 4`` bytes
per element and rank, as float32 does.

Large exchanges go in parts, so that rounding and summing overlap with the network. The order of collectives follows
from the gradients' sizes alone: it is the same on every rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from lowprec_plugin.arithmetic import ops, wire_ops
from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.random_bits import key_of, substream
from lowprec_plugin.arithmetic.reference.wire import BLOCK, Chunk, Piece, blocks_of, chunk_bytes, chunk_of
from lowprec_plugin.comm.worker import wait
from lowprec_plugin.compat.renamed import all_gather_single

#: Blocks of one part: a million numbers.
PART = 4096
_ALIGNMENT = 16


class Gradient(NamedTuple):
    """What one parameter sends: see :class:`~lowprec_plugin.arithmetic.reference.wire.Piece`."""

    values: Tensor
    key: int
    sum_key: int
    residual: Blocks | None = None


@dataclass
class Traffic:
    """What one rank has sent, counted where it is handed to the collectives.

    Attributes:
        bytes_sent: bytes that left this rank.
        float32_bytes: what a ring all-reduce of the same numbers in float32 would have sent.
        exchanges: all-reduces.
    """

    bytes_sent: int = 0
    float32_bytes: float = 0.0
    exchanges: int = 0

    def per_step(self, steps: int, kind: str = "") -> dict[str, float]:
        """Bytes sent, and what float32 would have sent, in the mean of ``steps``, by names with ``kind`` in them."""
        steps = max(1, steps)
        return {
            f"{kind}bytes_sent_per_step": self.bytes_sent / steps,
            f"float32_{kind}bytes_per_step": self.float32_bytes / steps,
        }


def total(traffics: Iterable[Traffic]) -> Traffic:
    """All of them together."""
    every = list(traffics)
    return Traffic(
        sum(each.bytes_sent for each in every), sum(each.float32_bytes for each in every),
        sum(each.exchanges for each in every),
    )  # fmt: skip


@dataclass
class Exchange:
    """How gradients are reduced.

    Args:
        word_length: 4, 8, 12 or 16 bits.
        rounding: ``"stochastic"`` or ``"nearest"``.
        group: the process group; its collectives must not be mixed with others' in another order on another rank.
        mean: divide the sum by the number of ranks.
    """

    word_length: int
    rounding: str
    group: dist.ProcessGroup | None
    mean: bool = True
    traffic: Traffic = field(default_factory=Traffic)

    def run(self, gradients: Sequence[Gradient]) -> None:
        """Replace every gradient's values by the mean (or sum) over the ranks, in place."""
        ranks = dist.get_world_size(self.group)
        parts = [_Part(self, pieces, plain, ranks) for pieces, plain in _parts(gradients)]
        for index in range(len(parts) + 2):  # three parts are under way at a time
            if index < len(parts):
                parts[index].send()
            if 0 <= index - 1 < len(parts):
                parts[index - 1].sum()
            if index >= 2:
                parts[index - 2].read()
        elements = sum(gradient.values.numel() for gradient in gradients)
        self.traffic.float32_bytes += 2 * (ranks - 1) / ranks * 4 * elements
        self.traffic.exchanges += 1


class _Part:
    """A stretch of blocks, and the gradients that travel as float32, on their way."""

    def __init__(self, exchange: Exchange, pieces: list[Piece], plain: list[Tensor], ranks: int) -> None:
        self.exchange, self.ranks = exchange, ranks
        self.pieces, self.plain = pieces, plain
        self.device = (pieces[0].values if pieces else plain[0]).device
        self.blocks, self.floats, self.packed, self.stride = _sizes(
            sum(piece.blocks for piece in pieces), sum(tensor.numel() for tensor in plain), ranks, exchange.word_length
        )
        self.slices = [_slice(pieces, self.blocks * rank, self.blocks * (rank + 1)) for rank in range(ranks)]

    def send(self) -> None:
        """Round, and start the first collective."""
        sent = torch.zeros(self.ranks, self.stride, dtype=torch.uint8, device=self.device)
        for row, pieces in zip(sent, self.slices, strict=True):
            wire_ops.round_(pieces, self._chunk(row), self.exchange.word_length, self.exchange.rounding)
        if self.plain:
            flat = torch.cat([tensor.float() for tensor in self.plain])
            flat = pad(flat, (0, self.ranks * self.floats - flat.numel()))
            self._floats(sent).copy_(flat.view(torch.uint8).view(self.ranks, -1))
        self.received = torch.empty_like(sent)
        self._count(sent[0])
        self.sent = sent  # held until the collective is done with it
        self.work = dist.all_to_all_single(self.received, sent, group=self.exchange.group, async_op=True)

    def sum(self) -> None:
        """Sum what came, and start the second collective."""
        wait(self.work)
        del self.sent
        own = self.slices[dist.get_rank(self.exchange.group)]
        mean = torch.zeros(self.stride, dtype=torch.uint8, device=self.device)
        divisor = float(self.ranks if self.exchange.mean else 1)
        chunks = [self._chunk(row) for row in self.received]
        wire_ops.sum_(own, chunks, self._chunk(mean), self.exchange.word_length, divisor, self.exchange.rounding)
        if self.plain:
            rows = self._floats(self.received).contiguous().view(torch.float32)
            total = rows[0].double()  # in which no sum of float32's overflows
            for row in rows[1:]:
                total += row
            self._floats(mean).copy_((total / divisor).float().view(torch.uint8))
        self._count(mean)
        self.mean = mean  # held until the collective is done with it
        self.received, self.work = gather(mean, self.exchange.group)

    def read(self) -> None:
        """Write what came to the gradients."""
        wait(self.work)
        for row, pieces in zip(self.received, self.slices, strict=True):
            wire_ops.read_(pieces, self._chunk(row), self.exchange.word_length)
        at, flat = 0, self._floats(self.received).contiguous().view(torch.float32).view(-1)
        for tensor in self.plain:
            tensor.copy_(flat[at : at + tensor.numel()])
            at += tensor.numel()
        del self.received, self.mean

    def _floats(self, rows: Tensor) -> Tensor:
        return rows[..., self.packed : self.packed + 4 * self.floats]

    def _chunk(self, row: Tensor) -> Chunk:
        return chunk_of(row[: self.packed], self.blocks, self.exchange.word_length)

    def _count(self, to_each: Tensor) -> None:
        self.exchange.traffic.bytes_sent += (self.ranks - 1) * to_each.nbytes


def reduce_scatter(output: Tensor, input: Tensor, exchange: Exchange, stream: int, step: int) -> None:
    """Write to ``output`` this rank's share of the sum (or mean) of ``input``, each number rounded once on its way."""
    ranks, word_length, share = dist.get_world_size(exchange.group), exchange.word_length, output.numel()
    blocks = blocks_of(share)
    key, _ = keys(stream, step, dist.get_rank())  # in the world: replicas of a shard round independently
    sent = torch.zeros(ranks, chunk_bytes(blocks, word_length), dtype=torch.uint8, device=input.device)
    for index, values in enumerate(ops.readable(input.detach()).view(ranks, share)):
        piece = Piece(values, index * blocks, 0, key, 0)
        wire_ops.round_([piece], chunk_of(sent[index], blocks, word_length), word_length, exchange.rounding)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=exchange.group)
    scale = 2.0 ** -(ranks - 1).bit_length()  # at which no sum of so many overflows
    total = torch.zeros(share, device=input.device)
    values = torch.empty(share, device=input.device)
    for row in received:
        wire_ops.read_([Piece(values, 0, 0, 0, 0)], chunk_of(row, blocks, word_length), word_length)
        total += values * scale
    total /= scale * (ranks if exchange.mean else 1)
    output.detach().view(-1).copy_(total)
    exchange.traffic.bytes_sent += (ranks - 1) * sent[0].nbytes
    exchange.traffic.float32_bytes += (ranks - 1) * 4 * share
    exchange.traffic.exchanges += 1


def gather(tensor: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, dist.Work]:
    """Every rank's ``tensor``, stacked, once the work is done."""
    ranks = dist.get_world_size(group)
    flat = torch.empty(ranks * tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    work = all_gather_single(flat, tensor.reshape(-1), group=group, async_op=True)
    return flat.view(ranks, *tensor.shape), work


def message_bytes(gradients: Iterable[int], ranks: int, word_length: int) -> list[int]:
    """Bytes of each message of one exchange, part by part; two go from every rank to each other rank.

    Args:
        gradients: elements of each.
    """
    sizes = [elements for elements in gradients if elements > 0]
    blocks = sum(blocks_of(elements) for elements in sizes if not is_plain(elements))
    floats = sum(elements for elements in sizes if is_plain(elements))
    parts = [(min(PART, blocks - begin), floats if begin == 0 else 0) for begin in range(0, blocks, PART)]
    if floats and not parts:
        parts = [(0, floats)]
    return [_sizes(*part, ranks, word_length).stride for part in parts]


class _Sizes(NamedTuple):
    blocks: int  # that each rank sums
    floats: int  # the same of what travels as float32
    packed: int  # bytes of these blocks
    stride: int  # bytes of a message


def _sizes(blocks: int, floats: int, ranks: int, word_length: int) -> _Sizes:
    blocks, floats = -(-blocks // ranks), -(-floats // ranks)
    packed = chunk_bytes(blocks, word_length) if blocks else 0
    return _Sizes(blocks, floats, packed, packed + -(-4 * floats // _ALIGNMENT) * _ALIGNMENT)


def is_plain(elements: int) -> bool:
    """Whether a gradient of so many elements travels as float32."""
    return elements < BLOCK


def keys(stream: int, step: int, rank: int) -> tuple[int, int]:
    """Of the random bits of one gradient in one step: of this rank's rounding, and of the mean's, which all share."""
    return key_of(substream(stream, f"wire, rank {rank}"), step), key_of(substream(stream, "wire, mean"), step)


def _parts(gradients: Sequence[Gradient]) -> Iterator[tuple[list[Piece], list[Tensor]]]:
    """The gradients in parts of at most ``PART`` blocks, the plain ones with the first."""
    gradients = [gradient for gradient in gradients if gradient.values.numel() > 0]
    plain = [gradient.values for gradient in gradients if is_plain(gradient.values.numel())]
    pieces, place = [], 0
    for gradient in gradients:
        if not is_plain(gradient.values.numel()):
            values, key, sum_key, residual = gradient
            pieces.append(Piece(values, 0, place, key, sum_key, residual))
            place += pieces[-1].blocks
    if not pieces and plain:
        yield [], plain
    for begin in range(0, place, PART):
        yield _slice(pieces, begin, begin + PART), plain if begin == 0 else []


def _slice(pieces: Sequence[Piece], begin: int, end: int) -> list[Piece]:
    """What of ``pieces`` is placed in blocks ``begin`` to ``end``, placed from 0 on."""
    found = []
    for piece in pieces:
        first, last = max(begin, piece.place), min(end, piece.place + piece.blocks)
        if first >= last:
            continue
        skipped, kept = first - piece.place, slice(first - piece.place, last - piece.place)
        residual = piece.residual
        if residual is not None:
            assert residual.exponents is not None
            residual = Blocks(residual.codes[kept], None, residual.exponents[kept])
        found.append(
            piece._replace(
                values=piece.values[kept.start * BLOCK : kept.stop * BLOCK],
                first_block=piece.first_block + skipped,
                place=first - begin,
                residual=residual,
            )
        )
    return found
