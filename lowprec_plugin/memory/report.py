"""What a module and its optimizer hold, in bytes."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lowprec_plugin.compat.sparse import tensors_in
from lowprec_plugin.compat.trees import tree_leaves
from lowprec_plugin.formats import check_kind
from lowprec_plugin.memory.kinds import Kinds, as_table, float32_of
from lowprec_plugin.tensor.dtensor import local_part


@dataclass(frozen=True)
class MemoryReport:
    """Bytes by kind. ``float32`` is what the same elements would take in float32; printed, it is a table of both.

    Attributes:
        elements: parameters, counted once where tied.
        weights, state, gradients, buffers: bytes held.
        float32_weights, float32_state, float32_gradients, float32_buffers: bytes that these would take.
    """

    elements: int
    weights: int
    state: int
    gradients: int
    buffers: int
    float32_weights: int
    float32_state: int
    float32_gradients: int
    float32_buffers: int

    @property
    def held(self) -> Kinds:
        """What is held, by kind."""
        return Kinds(self.weights, self.state, self.gradients, buffers=self.buffers)

    @property
    def float32(self) -> Kinds:
        """The same in float32."""
        return Kinds(self.float32_weights, self.float32_state, self.float32_gradients, buffers=self.float32_buffers)

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return self.held.total

    @property
    def float32_total(self) -> int:
        """The same in float32."""
        return self.float32.total

    def __str__(self) -> str:
        return as_table(self.held, self.float32)

    @property
    def per_parameter(self) -> float:
        """Bytes of weights and state per parameter."""
        return (self.weights + self.state) / max(1, self.elements)

    @property
    def float32_per_parameter(self) -> float:
        """The same in float32."""
        return (self.float32_weights + self.float32_state) / max(1, self.elements)

    @property
    def saved(self) -> int:
        """Bytes saved in weights and state against float32."""
        return self.float32_weights + self.float32_state - self.weights - self.state


def report(module: nn.Module, optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] = ()) -> MemoryReport:
    """Add up what ``module`` and ``optimizer`` (one or several) hold now, on this rank if they are sharded.

    State appears with the first step: before it, ``state`` is 0. What FSDP2 has gathered for a forward pass is put back
    into shards first.

    Raises:
        ValueError: for anything but a module and optimizers.
    """
    check_kind(module, nn.Module, "module")
    optimizers = optimizers_of(optimizer, "optimizer")
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    params = [local_part(param) for param in module.parameters()]
    every = with_held(optimizers)
    leaves = [leaf for each in every for leaf in tree_leaves(dict(each.state)) if isinstance(leaf, Tensor)]
    state = [local_part(leaf) for leaf in leaves]
    own, floats = gradients(module)
    return MemoryReport(
        elements=sum(param.numel() for param in params),
        weights=_bytes(params),
        state=_bytes(state),
        gradients=own,
        buffers=_bytes(module.buffers()),
        float32_weights=4 * sum(param.numel() for param in params),
        float32_state=4 * sum(tensor.numel() for tensor in state),
        float32_gradients=floats,
        float32_buffers=float32_of(module.buffers()),
    )


def optimizers_of(
    given: torch.optim.Optimizer | Iterable[torch.optim.Optimizer], name: str
) -> list[torch.optim.Optimizer]:
    """The optimizers that the argument ``name`` is given, one or several.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(given, torch.optim.Optimizer):
        return [given]
    several = isinstance(given, Iterable) and not isinstance(given, Tensor | str)
    optimizers: list[Any] = list(given) if several else [given]
    for each in optimizers:
        check_kind(each, torch.optim.Optimizer, name)
    return optimizers


def held_by(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizers that ``optimizer`` holds in its attributes, and steps in its own step, as Lookahead does."""
    found: list[torch.optim.Optimizer] = []
    for value in optimizer.__dict__.values():
        several = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        found += [each for each in several if isinstance(each, torch.optim.Optimizer) and each is not optimizer]
    return found


def with_held(optimizers: Iterable[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    """``optimizers`` and all that they hold, each once."""
    found: dict[int, torch.optim.Optimizer] = {}
    waiting = list(optimizers)
    while waiting:
        optimizer = waiting.pop(0)
        if id(optimizer) not in found:
            found[id(optimizer)] = optimizer
            waiting += held_by(optimizer)
    return list(found.values())


def gradients(module: nn.Module) -> tuple[int, int]:
    """Bytes of the gradients that ``module`` has now, on this rank if they are sharded; and in float32."""
    found = [local_part(param.grad) for param in module.parameters() if param.grad is not None]
    return _bytes(found), sum(_bytes([t]) if t.is_sparse else 4 * t.numel() for t in found)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(bytes_of(tensor) for tensor in tensors)


def bytes_of(tensor: Tensor) -> int:
    """Bytes that ``tensor`` holds: where it is sparse, or of a class that wraps others, those of its parts."""
    if hasattr(tensor, "__tensor_flatten__"):
        return _bytes(getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
    parts = tensors_in(tensor)
    return _bytes(parts) if parts else tensor.nbytes


def live_storages() -> dict[int, tuple[int, tuple[Any, ...]]]:
    """Every storage that a live tensor of this process refers to.

    Returns:
        address -> (bytes, (dtype, shape) of one tensor on it). Finds what any object holds, whoever owns it, so that a
        hidden float copy shows. Tensors that only C++ holds, such as those autograd saved, are not Python objects.
    """
    found: dict[int, tuple[int, tuple[Any, ...]]] = {}
    for tensor in _live_tensors():
        storage = tensor.untyped_storage()
        if storage.nbytes():
            found[storage.data_ptr()] = (storage.nbytes(), (tensor.dtype, tuple(tensor.shape)))
    return found


def _live_tensors() -> Iterator[Tensor]:
    gc.collect()
    for thing in gc.get_objects():
        # type(), not isinstance(): some lazy objects answer the latter by importing things. Subclasses have no storage
        # of their own: what they wrap is an ordinary tensor and comes by itself.
        if type(thing) in (Tensor, nn.Parameter) and thing.device.type != "meta" and thing.layout == torch.strided:
            yield thing
