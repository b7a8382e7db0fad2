"""Wider words for a module and its optimizers, between two steps."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lowprec_plugin.compat.trees import tree_leaves
from lowprec_plugin.formats import check_kind, check_word_length
from lowprec_plugin.memory import optimizers_of, with_held
from lowprec_plugin.optim.naming import described
from lowprec_plugin.optim.state import places
from lowprec_plugin.optim.step import FixedPointStep
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.dtensor import fixed_part, stored_part
from lowprec_plugin.tensor.opening import follow
from lowprec_plugin.tensor.widen import widen_ as widen_tensor_


def widen_(module: nn.Module, optimizers: Optimizer | Iterable[Optimizer], word_length: int) -> None:
    """Store the parameters of ``module`` in words of ``word_length`` bits, in place, every value kept exactly.

    State follows where its word length is the parameters' own (``state_word_length=None``); a state word length of its
    own pins it. Windows on parameters that an optimizer holds follow, too; any other refuses to be written to from then
    on. Parameters in wider words already, and floats, are left alone. Narrowing again is not possible: what the bits
    held would be lost.

    Args:
        module: changed in place.
        optimizers: one or several of this package's or adopted, whose state is changed in place.
        word_length: 2 to 24 bits.

    Raises:
        ValueError: for a word length outside these, another optimizer, or a sharded parameter. Nothing is changed then.
    """
    check_word_length(word_length)
    check_kind(module, nn.Module, "module")
    given = optimizers_of(optimizers, "optimizers")
    tensors = [param for param in module.parameters() if fixed_part(param) is not None]
    whole = {stored_part(param)._shared: stored_part(param) for param in tensors}
    windows: list[tuple[FixedPointTensor, FixedPointTensor]] = []  # that an optimizer holds, and the parameters
    for optimizer in with_held(given):
        bits = None  # of state that an optimizer has which another has made in its step, and which is not adopted
        if isinstance(optimizer, FixedPointStep):
            bits = optimizer.fixed_point.state_word_length
        elif any(optimizer is each for each in given):
            raise ValueError(
                f"{type(optimizer).__name__} is not of this package, and its state stays as it is: optim.adopt it first"
            )
        for leaf in tree_leaves(vars(optimizer)):
            part = fixed_part(leaf)
            if part is not None and part._shared in whole:
                windows.append((part, whole[part._shared]))
        for state in optimizer.state.values():
            for holder, key, _ in places(state):
                part = fixed_part(holder[key])
                if part is not None and part._shared not in whole and (bits is None or part.is_copy):
                    tensors.append(holder[key])
    for tensor in tensors:
        if isinstance(tensor, DTensor):
            raise ValueError(f"{described(tensor)} is sharded, and what gathers it expects the words it has: use DDP")
    for tensor in tensors:
        assert isinstance(tensor, FixedPointTensor)
        if tensor.format.word_length < word_length:
            widen_tensor_(tensor, word_length)
    for window, param in windows:
        follow(window, param)
