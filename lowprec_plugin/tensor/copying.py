"""What is copied or assigned to a fixed-point tensor: exact where it can be, else rounded as the tensor rounds.

From a tensor of equal blocks the codes are copied, and numbers of the target's format stay what they are under either
way of rounding. All others are rounded as ``rounding`` says, like what any operation writes: an average kept up by
copies moves by a part of a code at a time, or by a code and a half, and to nearest would lose the part or the half each
time (docs/decisions/0012-copies-round.md).
"""

from __future__ import annotations

from weakref import WeakSet

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from lowprec_plugin.arithmetic.blocks import empty_blocks
from lowprec_plugin.compat.exchanging import exchange, holder_of
from lowprec_plugin.tensor.coded import Coded, Shared, check_not_left, rows_in
from lowprec_plugin.tensor.opening import current, renew


def copy_(target: Coded, source: Tensor) -> Coded:
    """What ``target.copy_(source)`` does: exact from equal blocks, else the numbers of ``source``, rounded once.

    Raises:
        ValueError: if they are not finite, or negative and ``target``'s format squared. ``target`` is then as it was.
    """
    check_not_left(target)
    if current() is not None or target._shared.open is not None:
        return _copy_into_open(target, source)
    if isinstance(source, Coded):
        if _alike(target, source):
            target.blocks.copy_(source.blocks)
            target._shared.factor = source._shared.factor
            if not target._shared.placed:  # FSDP fills the room it has made for a shard
                target.first_row, target._shared.placed = source.first_row, True
            target.roundings = source.roundings  # a restored tensor goes on with the random bits it would have had
            return target
        source = source._floats(torch.float32)[1]
    plain = (
        type(source) in (Tensor, torch.nn.Parameter) and source.is_floating_point() and source.layout == torch.strided
    )
    if plain and target.is_whole and (source.shape, source.device) == (target.shape, target.device):
        target._store(source, target.rounding)  # read where they are
        return target
    return _write(target, source)


def _copy_into_open(target: Coded, source: Tensor) -> Coded:
    """``target.copy_(source)`` during an optimizer's step; exact if both are closed and alike."""
    if isinstance(source, Coded):
        if source._shared.open is None and _alike(target, source):
            target._shared.open = None
            target._planes.copy_(source._planes)
            target._shared.factor = source._shared.factor
            return target
        source = source._floats(torch.float32)[1]
    if (opening := current()) is not None:
        opening.write([target])
    return _write(target, source)


def _write(target: Coded, source: Tensor) -> Coded:
    floats, window = target._floats(torch.float32)
    window.copy_(source)
    target._store(floats, target.rounding)
    return target


def _alike(target: Coded, source: Coded) -> bool:
    """Whether the codes of one can be copied to those of the other."""
    whole = target.is_whole and source.is_whole and target.shape == source.shape
    whole &= type(target) is type(source)  # a gradient has more than its codes
    return whole and target.format == source.format and target._codes.shape == source._codes.shape


def assign_(target: Coded, value: Tensor) -> None:
    """What ``target.data = value`` does: put other codes in place of ``target``'s, rounded as it rounds.

    A fixed-point ``value`` brings its own codes and format along, but not into an optimizer's step: a parameter keeps
    its format there.

    Raises:
        ValueError: if ``value`` is not floating point, or not finite, or on another kind of device while an autograd
            graph has hold of ``target``.
    """
    fits = value.is_floating_point() and (value.shape, value.device) == (target.shape, target.device)
    if current() is not None and target.is_whole and fits:
        _assign_open(target, value)
        return
    source = value if isinstance(value, Coded) and value.is_whole else _stored(target, value)
    # Whatever is put here, the random bits of what was rounded before are not drawn again.
    roundings = max(target.roundings, source.roundings)
    try:
        # torch's own setter: shape, strides and dtype.
        torch.Tensor.data.__set__(target, source)  # type: ignore[attr-defined]
    except RuntimeError:  # it does not go from one kind of device to another
        if holder := holder_of(target):
            raise ValueError(f"tensor {target.label!r} stays on {target.device}: it is held by {holder}") from None
        other = torch.nn.Parameter(source, target.requires_grad) if isinstance(target, torch.nn.Parameter) else source
        exchange(target, other)
        return
    target._codes, target._low, target._exponents = source.blocks
    target.format = source.format
    renew(target)
    target.roundings = roundings
    if source is not value:
        note_memory(target, value)


def _assign_open(target: Coded, value: Tensor) -> None:
    """``target.data = value`` during an optimizer's step: from here on they are the same memory.

    ``target`` keeps its format, and fixed-point ``value`` gets it; floats are the same until they are rounded.
    """
    same = isinstance(value, Coded) and _alike(target, value)
    if not same:
        target._codes, target._low, target._exponents = target._planes.map(torch.clone)  # what an exception leaves
        renew(target)
        _copy_into_open(target, value)
        note_memory(target, value)
    opened = target._shared.open
    if isinstance(value, Coded):
        if not value.is_whole or value._codes.shape != target._codes.shape:
            return  # a window on something else, which stays one
        one, other = (target, value) if same else (value, target)
        one._codes, one._low, one._exponents = other._planes
        one.format, one._shared, one._offset = other.format, other._shared, other._offset
        value.stream = target.stream  # a copy of it, to whoever looks at an optimizer's state
    elif opened is not None and value.dtype == torch.float32 and value.is_contiguous():
        opened.floats = value.detach().view(opened.floats.shape)


def exchange_codes(one: Tensor, other: Tensor) -> bool:
    """Exchange what two tensors store: codes, format, and the count that keys their random bits.

    Nothing is rounded, and on one device nothing is copied. Earlier windows on either go with the codes; dtype,
    rounding and random stream stay with the tensor.

    Returns:
        whether they are two fixed-point tensors of one shape, each all of its codes; if not, nothing is changed.
    """
    if not isinstance(one, Coded) or not isinstance(other, Coded):
        return False
    if one._codes.shape != other._codes.shape or one._geometry != other._geometry:
        return False
    for tensor in (one, other):
        check_not_left(tensor)
        if tensor._shared.rows != rows_in(tensor._codes):
            return False
    ones, others = one.blocks, other.blocks
    with torch.inference_mode(False):  # what is moved to another device is trained on later
        one._codes, one._low, one._exponents = others.map(lambda plane: plane.to(one.device))
        other._codes, other._low, other._exponents = ones.map(lambda plane: plane.to(other.device))
    one.format, other.format = other.format, one.format
    one._shared, other._shared = other._shared, one._shared
    return True


#: Whose memory of before others may hold yet.
_with_memory: WeakSet[Shared] = WeakSet()


def note_memory(target: Coded, floats: Tensor) -> None:
    """``target`` came from ``floats``, and a float tensor would be their memory: who goes on writing there is refused.

    See :mod:`lowprec_plugin.optim.laid_out`.
    """
    if type(floats) in (Tensor, torch.nn.Parameter) and floats.layout == torch.strided:
        target._shared.memory = StorageWeakRef(floats.untyped_storage())  # type: ignore[no-untyped-call]
        _with_memory.add(target._shared)


def memory_is_held() -> bool:
    """Whether anybody holds memory that a fixed-point tensor had as floats. Where none is, that is known at once."""
    for shared in list(_with_memory):
        if shared.memory is not None and not shared.memory.expired():  # type: ignore[no-untyped-call]
            return True
        _with_memory.discard(shared)
    return False


def _stored(target: Coded, value: Tensor) -> Coded:
    """``value`` as ``target`` would hold it; a window on a part of fixed-point codes as the whole of these are held."""
    if isinstance(value, Coded):
        like, value, fits = value, value.dequantize(torch.float32), False
    else:
        like, fits = target, target.is_whole and value.shape == target.shape
    blocks = empty_blocks(target._codes.shape if fits else value.shape, like.format, value.device)
    stored = like._like(blocks) if fits else like._like(blocks, geometry=None)
    stored._store(value, target.rounding)
    return stored


def convert_(target: Coded, source: Coded) -> None:
    """Copy ``source`` into ``target`` of another format, if it holds every value exactly.

    Raises:
        ValueError: if some value is not exact in ``target``'s format. ``target`` is then as it was.
    """
    floats, window = target._floats(torch.float32)
    window.copy_(source._floats(torch.float32)[1])
    trial = target._like(empty_blocks(floats.shape, target.format, floats.device), geometry=None)
    trial._store(floats, "nearest")
    if not torch.equal(trial._floats(torch.float32)[1], floats):
        there = "in blocks of other elements" if source.format == target.format else f"as {target.format}"
        raise ValueError(f"a tensor stored as {source.format} is not exact {there}; dequantize() it to round it")
    target.blocks.copy_(trial.blocks)
