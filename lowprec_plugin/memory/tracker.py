"""Sees every storage that operations make, from when it comes about until it is freed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lowprec_plugin.compat.autograd import backward_pass
from lowprec_plugin.compat.dispatching import DispatchMode
from lowprec_plugin.compat.sparse import tensors_in
from lowprec_plugin.compat.trees import tree_leaves
from lowprec_plugin.formats import check_kind
from lowprec_plugin.memory.report import optimizers_of, with_held
from lowprec_plugin.memory.timeline import KINDS, Timeline, timeline_of
from lowprec_plugin.tensor.dtensor import local_part


class _Storage:
    """One storage, alive or not.

    Attributes:
        alive: what says so, and is called when it is freed.
        nbytes: of it now.
        kind: what it is for; ``None`` as long as that is open.
    """

    __slots__ = ("alive", "kind", "nbytes")

    def __init__(self, kind: str | None) -> None:
        self.alive: Any = None
        self.nbytes = 0
        self.kind = kind


class MemoryTracker(DispatchMode):
    """Within the context, counts the storages of parameters, state and gradients, and all that operations make.

    ::

        with MemoryTracker(module, optimizer) as tracker:
            loss_of(module(x), y).backward()
            optimizer.step()
        print(tracker.timeline().peak)

    Seen is what operations of this thread and of its backward passes allocate on the parameters' device; not what one
    operation allocates and frees within itself, nor what was there before and is neither a parameter, a buffer, state
    nor a gradient, such as a batch. No number changes. Every operation takes some microseconds longer, and a compiled
    module runs as it was written, so look at one step, not at every one.

    Args:
        module: whose step it is.
        optimizer: one or several.

    Raises:
        ValueError: for anything but a module and optimizers, and for a module without parameters.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] = ()
    ) -> None:
        super().__init__()
        check_kind(module, nn.Module, "module")
        self._module, self._optimizers = module, with_held(optimizers_of(optimizer, "optimizer"))
        first = next(module.parameters(), None)
        if first is None:
            raise ValueError(f"{type(module).__name__} has no parameters: give the module that is trained")
        self._device = local_part(first).device.type
        self._alive: dict[int, _Storage] = {}
        self._events: list[tuple[str, _Storage, int]] = []
        self._resized: dict[_Storage, None] = {}  # what may shrink or grow
        self._hooks: list[RemovableHandle] = []
        self._phase = "forward"
        self._went_back = False
        self._before = 0  # events that count what was held already

    def timeline(self) -> Timeline:
        """What there was after each event, by kind."""
        events = [(phase, storage.kind or "temporaries", change) for phase, storage, change in self._events]
        return timeline_of(events, self._before)

    def __enter__(self) -> MemoryTracker:
        """Begin with what is held."""
        self._events, self._phase, self._went_back = [], "forward", False
        self._look_at_all()
        self._before = len(self._events)
        for param in self._module.parameters():
            if param.requires_grad:
                self._hooks.append(param.register_hook(self._gradient))  # type: ignore[no-untyped-call]
        super().__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        """End. What is alive is no longer followed."""
        super().__exit__(*args)
        self._look_at_all()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._alive, self._resized = [], {}, {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Carry ``func`` out and look at its results; operations on other classes come as what these make of them."""
        if any(kind not in (Tensor, nn.Parameter) for kind in types):
            return NotImplemented
        if func.namespace != "profiler":  # whose marks, as optimizers set them around their steps, are in no phase
            self._enter_phase()
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = _tensors(args, kwargs)
        for each in (*_tensors(result), *_tensors(kwargs.get("out"))):
            written = any(each is other for other in given)
            views = () if written else given
            storage = each.untyped_storage()
            # A view of what was there before, of a batch say, is nothing new.
            if id(storage) in self._alive or not any(other.untyped_storage() is storage for other in views):
                self._see(each, written)
        return result

    def _enter_phase(self) -> None:
        if backward_pass() is not None:
            phase = "backward"
        elif torch.is_grad_enabled() or not self._went_back:
            phase = "forward"
        else:
            phase = "step"
        if phase == self._phase:
            return
        self._look_at_sizes(list(self._alive.values()))
        if phase == "backward":  # what has come about since the last is what it needs
            self._went_back = True
            for storage in list(self._alive.values()):
                storage.kind = storage.kind or "activations"
        if self._phase == "backward":
            self._look_at_gradients()
        self._phase = phase

    def _look_at_all(self) -> None:
        for kind, tensors in (
            ("weights", self._module.parameters()), ("buffers", self._module.buffers()), ("state", self._state()),
        ):  # fmt: skip
            for tensor in tensors:
                self._mark(tensor, kind)
        self._look_at_gradients()

    def _look_at_gradients(self) -> None:
        for param in self._module.parameters():
            if param.grad is not None:
                self._mark(param.grad, "gradients")

    def _state(self) -> Iterator[Tensor]:
        for optimizer in self._optimizers:
            yield from (leaf for leaf in tree_leaves(dict(optimizer.state)) if isinstance(leaf, Tensor))

    def _gradient(self, gradient: Tensor) -> None:
        self._mark(gradient, "gradients")

    def _mark(self, tensor: Tensor, kind: str) -> None:
        for plane in planes(tensor):
            storage = self._see(plane)
            # A parameter's storage may hold its gradient too, and the first to come is what it is for.
            if storage is not None and storage.kind not in KINDS[: KINDS.index(kind)]:
                storage.kind = kind

    def _see(self, tensor: Tensor, written: bool = False) -> _Storage | None:
        """The storage of a plain ``tensor``, counted from now on; ``None`` for one on another device.

        ``written``: it was there before the operation that ``tensor`` comes from.
        """
        if tensor.device.type != self._device or tensor.layout != torch.strided:
            return None
        storage = tensor.untyped_storage()
        number = id(storage)
        known = self._alive.get(number)
        if known is None:
            known = _Storage("temporaries" if self._phase == "backward" else None)
            known.alive = weakref.ref(storage, partial(self._freed, number))
            self._alive[number] = known
            if written:
                self._resized[known] = None
        elif known.nbytes != storage.nbytes():
            self._resized[known] = None
            known.kind = known.kind or "temporaries"  # as FSDP2 does with weights that it gathers
        self._count(known, storage.nbytes())
        return known

    def _count(self, storage: _Storage, nbytes: int) -> None:
        if nbytes > storage.nbytes:
            self._look_at_sizes(each for each in list(self._resized) if each is not storage)
        if nbytes != storage.nbytes:
            self._events.append((self._phase, storage, nbytes - storage.nbytes))
            storage.nbytes = nbytes

    def _look_at_sizes(self, storages: Iterable[_Storage]) -> None:
        """No operation says when a storage shrinks."""
        for each in storages:
            now = each.alive()
            if now is not None and now.nbytes() < each.nbytes:
                self._resized[each] = None
                self._count(each, now.nbytes())

    def _freed(self, number: int, _: Any) -> None:
        storage = self._alive.pop(number, None)
        if storage is not None:
            self._resized.pop(storage, None)
            self._count(storage, 0)


def timeline(
    module: nn.Module,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
    step: Callable[[], Any],
) -> Timeline:
    """Run ``step`` once, and give what memory it took over time, by kind, as :class:`MemoryTracker` sees it.

    Args:
        module: that is trained. State appears with its first step: look at a later one.
        optimizer: one or several.
        step: forward pass, backward pass and optimizer's step.

    Raises:
        ValueError: for anything but a module and optimizers, and for a module without parameters.
    """
    with MemoryTracker(module, optimizer) as tracker:
        step()
    return tracker.timeline()


def _tensors(*trees: Any) -> list[Tensor]:
    """Those in ``trees`` that have storages; of sparse ones what they are made of."""
    leaves = [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]
    return [plane for leaf in leaves for plane in planes(leaf) if plane.layout == torch.strided]


def planes(tensor: Tensor) -> Sequence[Tensor]:
    """The tensors with storages of their own that ``tensor`` is made of: on this rank, if it is sharded."""
    part = local_part(tensor)
    if hasattr(part, "__tensor_flatten__"):
        return [plane for name in part.__tensor_flatten__()[0] for plane in planes(getattr(part, name))]
    return tensors_in(part) or [part]
