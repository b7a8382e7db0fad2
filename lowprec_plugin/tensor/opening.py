"""Floats of fixed-point tensors that stay open over several operations in place, and are rounded once.

Outside of an :class:`Opening` every operation that writes to a fixed-point tensor rounds what it has written. An
optimizer's own step makes a dozen of them on each parameter. Inside one, the first such operation opens the tensor:
its floats stay until the step goes on to another parameter, and what reads or writes the tensor meanwhile finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from lowprec_plugin.tensor.coded import Coded, Open, Shared, rows_in

_current: ContextVar[Opening | None] = ContextVar("opening", default=None)


class Opening:
    """Keeps tensors open that are written to, those of one owner at a time.

    Args:
        owners: of tensors, by what their windows share: a parameter owns itself and its state.
        close: rounds what is given: the owner, and what is open of it.
        name: of the optimizer whose step it is, for messages.
        addresses_are_names: whether the step asks for addresses of tensors to tell them apart, and for nothing else.

    Attributes:
        most: bytes of the floats that were open at once, at most.
        together: owners that were open at once, at most.
    """

    def __init__(
        self,
        owners: Iterable[tuple[Shared, Hashable]],
        close: Callable[[Hashable | None, list[tuple[Shared, Open]]], None],
        name: str,
        addresses_are_names: bool = False,
    ) -> None:
        self._owners: WeakKeyDictionary[Shared, Hashable] = WeakKeyDictionary(dict(owners))
        self._close, self.name, self.addresses_are_names = close, name, addresses_are_names
        self._open: dict[int, ref[Shared]] = {}
        self.most = self.together = 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Keep tensors open until the end, when all are closed; after an exception they keep the codes they had."""
        outer = _current.get()
        if outer is not None:
            outer.close_all()
        token = _current.set(self)
        try:
            yield
            self.close_all()
        finally:
            for shared in self._alive():
                shared.open = None
            _current.reset(token)

    def owner_of(self, shared: Shared) -> Hashable | None:
        """What the tensor of ``shared`` belongs to, if that is known."""
        return self._owners.get(shared)

    def write(self, tensors: list[Coded]) -> None:
        """Open ``tensors``, which an operation is about to write to, and close what belongs to others.

        A part of a tensor that is not open stays closed: what is written to it is rounded at once.
        """
        owners = {self.owner_of(tensor._shared) for tensor in tensors} - {None}
        if owners:
            self._close_others(owners)
        for tensor in tensors:
            if tensor._shared.open is None and tensor._shared.rows == rows_in(tensor._codes):
                self._put(tensor, tensor._floats(torch.float32)[0])
        self._measure()

    def copy(self, source: Coded, result: Coded, floats: Tensor | None) -> None:
        """Let ``result``, a copy of ``source``, belong to the same; with ``floats`` it is open, without codes yet."""
        self.follow(source._shared, result._shared)
        if floats is not None:
            self._put(result, floats)
            self._measure()

    def follow(self, before: Shared, after: Shared) -> None:
        """Let the tensor of ``after`` belong to what that of ``before`` does."""
        owner = self.owner_of(before)
        if owner is not None:
            self._owners[after] = owner

    def _put(self, tensor: Coded, floats: Tensor) -> None:
        shared = tensor._shared
        shared.open = Open(floats, tensor._planes, tensor.format, tensor.stream, self.owner_of(shared), self.close)
        self._open[id(shared)] = ref(shared)

    def _measure(self) -> None:
        opened = [each.open for each in self._alive() if each.open is not None]
        self.most = max(self.most, sum(each.floats.nbytes for each in opened))
        self.together = max(self.together, len({each.owner for each in opened} - {None}))

    def _alive(self) -> list[Shared]:
        """What is open; copies that nobody holds any more are forgotten."""
        found = {number: shared() for number, shared in self._open.items()}
        alive = {number: shared for number, shared in found.items() if shared is not None and shared.open is not None}
        self._open = {number: self._open[number] for number in alive}
        return list(alive.values())

    def _close_others(self, owners: set[Any]) -> None:
        self._close_some([shared for shared in self._alive() if shared.open and shared.open.owner not in owners])

    def close(self, shared: Shared) -> None:
        """Round one tensor that is open now."""
        self._close_some([shared])

    def close_all(self) -> None:
        """Round all that is open."""
        self._close_some(self._alive())

    def _close_some(self, some: list[Shared]) -> None:
        by_owner: dict[Hashable | None, list[tuple[Shared, Open]]] = {}
        for shared in some:
            if shared.open is not None:
                by_owner.setdefault(shared.open.owner, []).append((shared, shared.open))
        for owner, members in by_owner.items():
            for shared, _ in members:
                shared.open = None  # before: what rounds it reads the codes it has
                self._open.pop(id(shared), None)
            self._close(owner, members)


def current() -> Opening | None:
    """The opening that operations are inside of."""
    return _current.get()


@contextmanager
def suspended() -> Iterator[None]:
    """Outside of any opening: what is open stays so, and is seen as it is; what is written to is rounded at once."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


def refuse_compiled() -> None:
    """Refuse what would take a tensor apart into its codes.

    Raises:
        ValueError: in an optimizer's step.
    """
    if (opening := current()) is not None:
        raise ValueError(
            f"{opening.name} gave a fixed-point tensor to a function that it had not compiled before this step: "
            "compile it when the optimizer is made, and the step runs it as it was written; or use another optimizer"
        )


def renew(tensor: Coded) -> None:
    """Part ``tensor``, whose codes have just become others, from the windows on its former ones."""
    before, opening = tensor._shared, current()
    tensor._shared = Shared(tensor.first_row, rows_in(tensor._codes), before.roundings, before.placed)
    tensor._offset = 0
    if opening is not None:
        opening.follow(before, tensor._shared)


def follow(window: Coded, tensor: Coded) -> None:
    """Let ``window``, on codes that ``tensor`` has had, be one on those that it has."""
    start, rows = window._offset, rows_in(window._codes)
    whole = rows == tensor._shared.rows
    planes = tensor._planes if whole else tensor._planes.map(lambda plane: plane[start : start + rows])
    window._codes, window._low, window._exponents = planes
    window.format, window._shared = tensor.format, tensor._shared


def part_from_padding(tensor: Coded) -> None:
    """Part a parameter from the larger tensor whose first rows it is: FSDP2 pads shards to one size."""
    if tensor._shared.rows != rows_in(tensor._codes):
        renew(tensor)
