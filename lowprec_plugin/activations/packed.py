"""Activations that autograd keeps for the backward pass, held in fixed-point codes until it needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from lowprec_plugin.activations.call_tracker import Running, check_inside
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.random_bits import key_of, stream_of, substream
from lowprec_plugin.compat.autograd import backward_pass, is_copy_of_leaf, version_of, viewed_by
from lowprec_plugin.compat.overrides import outside_overrides
from lowprec_plugin.formats import FixedPointFormat

#: A tensor of fewer elements stays float: its codes save less than what holds them costs.
SMALLEST = 1024
#: A result that the backward pass keeps of an operation (not of the network's own making) stays float if its operand
#: is this many times larger: a norm's means, attention's logarithms of sums. They are small, and all depends on them.
STATISTIC = 8


@dataclass
class KeptBytes:
    """What has been kept for backward passes so far.

    Attributes:
        elements: numbers kept in codes, each tensor once however many operations keep it.
        stored: bytes of their codes and exponents.
        as_float: what the same tensors take as they were.
        left: bytes of activations that were left in float: small ones and statistics.
    """

    elements: int = 0
    stored: int = 0
    as_float: int = 0
    left: int = 0


@dataclass(frozen=True)
class _Packed:
    blocks: Blocks  # of one row: the elements as they lie in memory
    format: FixedPointFormat
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    def unpacked(self) -> Tensor:
        return ops.dequantize(self.blocks, self.format, self.dtype).view(-1).as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class _Left:
    tensor: Tensor
    version: int  # hooks take torch's own check from it

    def unchanged(self) -> Tensor:
        if version_of(self.tensor) != self.version:
            raise ValueError(
                f"a tensor of shape {tuple(self.tensor.shape)} that the backward pass needs was changed in place after "
                "the forward pass: change a copy (x = x + 1 in place of x += 1), or call backward before"
            )
        return self.tensor


class KeptActivations:
    """Packs what autograd saves inside a network into codes, each block of 256 with a radix point of its own.

    Weights are not packed (theirs are codes already), nor integers, nor small tensors, nor statistics. A tensor that
    several operations keep is stored once, as it is without packing.

    Args:
        word_length: bits of a kept number: 2 to 24.
        rounding, seed: of the packing; the random bits are keyed by the step and by the order of keeping.

    Attributes:
        bytes: what has been kept so far.
    """

    def __init__(self, word_length: int, *, rounding: str = "stochastic", seed: int = 0, rank: int = 0) -> None:
        self.format = FixedPointFormat(word_length)
        ops.check_rounding(rounding)
        self.rounding = rounding
        self._stream = stream_of(seed, f"kept/{rank}")
        self.bytes = KeptBytes()

    def enter(self, inside: ExitStack, running: Running, step: int) -> None:
        """Pack what is saved inside one outermost module, until ``inside`` is unwound.

        What activation checkpointing computes again is not packed: it is needed at once, and checkpointing's own hooks
        have to see it.
        """
        if backward_pass() is None:
            inside.enter_context(_Packing(self, running, step))

    def key(self, place: str, step: int) -> int:
        """Of the random bits of what is kept at ``place``."""
        return key_of(substream(self._stream, place), step)


@contextmanager
def keep_activations(
    module: nn.Module,
    word_length: int,
    *,
    rounding: str = "stochastic",
    step: int = 0,
    seed: int = 0,
    rank: int = 0,
) -> Iterator[KeptActivations]:
    """Within the context, what the forwards of ``module`` keep for the backward pass is kept in codes.

    Forwards compute as ever; only backwards see rounded activations::

        with keep_activations(model, 8, step=step) as kept:
            loss = loss_of(model(x), y)
        loss.backward()
        print(kept.bytes)

    Args:
        module: the network; its parameters in any format.
        word_length: bits of a kept number: 2 to 24.
        rounding: ``"stochastic"`` or ``"nearest"``.
        step, seed, rank: key the random bits, with the place in the network.

    Yields:
        what counts the bytes.

    Raises:
        ValueError: for a word length or a rounding outside these, and for compiled modules. A backward pass with
            ``create_graph=True`` raises it too: what is kept has no history.
    """
    check_inside(module, seed, step, rank)
    kept = KeptActivations(word_length, rounding=rounding, seed=seed, rank=rank)
    running = Running(module, lambda inside: kept.enter(inside, running, step))
    with running.followed():
        yield kept


class _Packing(saved_tensors_hooks):
    def __init__(self, kept: KeptActivations, running: Running, step: int) -> None:
        super().__init__(self._pack, self._unpack)
        self._kept, self._running, self._step = kept, running, step
        self._known: dict[Any, tuple[StorageWeakRef, Blocks]] = {}
        self._last = 0  # elements of the operand that was kept last

    def __exit__(self, *args: object) -> None:
        super().__exit__(*args)
        # The hooks outlive the forward; backwards must be able to free codes one by one.
        self._known.clear()

    def _pack(self, tensor: Tensor) -> _Left | _Packed:
        with outside_overrides():  # this is not the network's arithmetic
            return self._packed(tensor) or _Left(tensor, version_of(tensor))

    def _packed(self, tensor: Tensor) -> _Packed | None:
        """``tensor`` in codes; ``None`` to leave it as it is."""
        if type(tensor) is not Tensor or not tensor.is_floating_point() or is_weight(tensor):
            return None
        operand = tensor.requires_grad
        statistic = not operand and tensor.numel() * STATISTIC <= self._last
        if operand:
            self._last = tensor.numel()
        expanded = tensor.nbytes > tensor.untyped_storage().nbytes()
        if tensor.numel() < SMALLEST or statistic or expanded or tensor.dtype == torch.float64:
            self._kept.bytes.left += min(tensor.nbytes, tensor.untyped_storage().nbytes())
            return None
        if not _dense(tensor):
            tensor = tensor.contiguous()
        # Views of one tensor (a linear layer keeps a matrix of a batch of sequences) are one.
        storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        where = (storage.cdata, tensor.storage_offset(), tensor.numel(), version_of(tensor), tensor.dtype)
        if where not in self._known:
            blocks = self._quantized(tensor)
            if blocks is None:
                self._kept.bytes.left += tensor.nbytes
                return None
            # The reference keeps the storage's address from being another's, not the storage.
            self._known[where] = (storage, blocks)
        blocks = self._known[where][1]
        return _Packed(blocks, self._kept.format, tensor.dtype, tensor.shape, tensor.stride())

    def _quantized(self, tensor: Tensor) -> Blocks | None:
        """The elements in the order of memory, as one row; ``None`` if some are not finite."""
        kept = self._kept
        row = tensor.detach().as_strided((1, tensor.numel()), (tensor.numel(), 1))
        if ops.first_nonfinite([row]) is not None:
            return None
        key = kept.key(self._running.next_place(), self._step)
        blocks, _ = ops.quantize(row, kept.format, rounding=kept.rounding, key=key)
        kept.bytes.elements += tensor.numel()
        kept.bytes.stored += blocks.nbytes
        kept.bytes.as_float += tensor.nbytes
        return blocks

    @staticmethod
    def _unpack(packed: _Left | _Packed) -> Tensor:
        if isinstance(packed, _Left):
            return packed.unchanged()
        if backward_pass() is not None and torch.is_grad_enabled():
            raise ValueError(
                "activations kept in codes have no history, and a backward pass with create_graph=True would "
                "differentiate wrongly: keep activations in float (activation_word_length=None) for second derivatives"
            )
        return packed.unpacked()


def is_weight(tensor: Tensor) -> bool:
    """Whether what autograd saves is a parameter in float, a view of one, or autocast's copy of one."""
    base = viewed_by(tensor)
    if base.is_leaf:
        return base.requires_grad or isinstance(base, nn.Parameter)
    # Autocast's copy of a weight that trains is no leaf; that of a frozen one looks like any other number.
    return is_copy_of_leaf(base.grad_fn)


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill a range of memory, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
