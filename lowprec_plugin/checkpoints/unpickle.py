"""Plain data and tensors out of a pickle, with stand-ins for all else: nothing else of it is imported or run.

To be given to ``torch.load`` as its ``pickle_module``. torch's own ``weights_only`` refuses a whole file for a dict or
list of another class in it, as hyperparameters are in checkpoints of Lightning.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from typing import Any

import torch

from lowprec_plugin.compat.pickles import PLAIN


class Unread(dict[Any, Any]):
    """Stands for an object of another class, which ``path`` names.

    The items of a dict or a list are kept, a list's by their places, for they may be tensors; of any other there are
    none.
    """

    path = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Unread:
        """What a function or class makes that is itself made by one that is not run."""
        return type(self)()

    def append(self, item: Any) -> None:
        """As a list's, or a set's."""
        self[len(self)] = item

    add = append

    def extend(self, items: Iterable[Any]) -> None:
        """As a list's."""
        for item in items:
            self.append(item)

    # Like any object, and unlike a dict, it may be the key of another or in a set.
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]


class InTheWayError(Exception):
    """A tensor is of a class that would have to be imported; the message is its path."""


class Unpickler(pickle.Unpickler):
    """Finds what plain data and tensors need, and what ``torch.serialization.add_safe_globals`` was told of."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function, or a stand-in."""
        path, told = f"{module}.{name}", _told()
        if path in told:
            return told[path]
        if name in PLAIN.get(module, ()):
            found = super().find_class(module, name)
            # What is only called is given as a function: a pickle can set attributes of a class, such as Counter's.
            return found if isinstance(found, type) and issubclass(found, torch.Tensor) else _guarded(found)
        if module in ("torch", "torch.storage") and name == "UntypedStorage":
            # torch.load asks for its dtype alone.
            return torch.serialization.StorageType("ByteStorage")  # type: ignore[no-untyped-call]
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype | torch.qscheme):
            return getattr(torch, name)
        return type(name, (Unread,), {"path": path})


def _told() -> dict[str, Any]:
    told = torch.serialization.get_safe_globals()
    pairs = (each if isinstance(each, tuple) else (each, f"{each.__module__}.{each.__qualname__}") for each in told)
    return {path: found for found, path in pairs}


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same of plain data and tensors alone."""

    def made(*args: Any) -> Any:
        for each in args:
            kind = each if isinstance(each, type) else type(each)
            if issubclass(kind, Unread):
                raise InTheWayError(kind.path)
        return function(*args)

    return made
