"""Lightning's classes that ours derive from.

All but ``LightningModule`` stand for the class of that name in every Lightning that this process imports, before or
after: what derives from one is accepted by each Lightning's Trainer. A ``LightningModule`` is that of the one in use.
"""

from __future__ import annotations

import importlib.abc
import inspect
import sys
import warnings
from abc import ABC
from functools import wraps
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from lowprec_plugin.compat.lightnings import LIGHTNINGS, Lightning, imported, in_use, lightning_of

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule
    from lightning.pytorch.loggers.logger import DummyLogger
    from lightning.pytorch.plugins.io import TorchCheckpointIO
    from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision

__all__ = [
    "Callback", "DeepSpeedPrecision", "DummyLogger", "LightningDataModule", "LightningModule", "Precision",
    "TorchCheckpointIO", "serve",
]  # fmt: skip


class _Plain:
    """Holds the place of a Lightning's class until there is one. Python exchanges bases for those of a like layout."""


class _Abstract(ABC):  # noqa: B024
    """The same, of a class that derives from ``ABC``."""


class _Kind(NamedTuple):
    """What a base stands for.

    Attributes:
        path: of the class in each Lightning.
        holder: what the base derives from where none is imported.
        own: whether methods are to be those of the Lightning that an instance serves, for they ask what class a module
            is of: the other's would pass over it.
    """

    path: str
    holder: type
    own: bool = False


_KINDS = {
    "Callback": _Kind("Callback", _Plain),
    "DeepSpeedPrecision": _Kind("plugins.precision.DeepSpeedPrecision", _Plain, own=True),
    "DummyLogger": _Kind("loggers.logger.DummyLogger", _Abstract),
    "LightningDataModule": _Kind("LightningDataModule", _Plain),
    "Precision": _Kind("plugins.precision.Precision", _Plain, own=True),
    "TorchCheckpointIO": _Kind("plugins.io.TorchCheckpointIO", _Abstract),
}
_made: dict[str, Any] = {}


def __getattr__(name: str) -> Any:
    if name == "LightningModule":
        return in_use().get(name)
    if name not in _KINDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _made:
        _made[name] = type(_KINDS[name].holder)(name, (_KINDS[name].holder,), {"__module__": __name__})
        if _arrivals not in sys.meta_path:
            sys.meta_path.insert(0, _arrivals)
        for each in imported():
            _stand_on(name, each)
    return _made[name]


def serve(thing: Any, module: object) -> None:
    """Let what ``thing``, whose class derives from one of these, inherits be of the Lightning that ``module`` is of."""
    thing._serves = lightning_of(module)


def _stand_on(name: str, lightning: Lightning) -> None:
    """Make the class ``name`` here a subclass of that in ``lightning`` too."""
    base, kind = _made[name], _KINDS[name]
    try:
        theirs = lightning.get(kind.path)
    except (ImportError, AttributeError):
        warnings.warn(
            f"{lightning.name} {lightning.version} has no {kind.path}: what lowprec_plugin derives from it works with "
            f"a Trainer of {lightning.name} 2.6 or later",
            stacklevel=2,
        )
        return
    before = tuple(each for each in base.__bases__ if each is not kind.holder)
    if theirs in before:
        return
    base.__bases__ = (*before, theirs)
    if kind.own and before:
        for each in base.__bases__:
            for method, _ in inspect.getmembers(each, inspect.isfunction):
                if not method.startswith("__"):
                    setattr(base, method, _served(method, kind.path, base.__bases__[0]))


def _served(method: str, path: str, first: type) -> Any:
    """``method`` of the Lightning that an instance serves; of the first that was imported, until it serves one."""

    @wraps(getattr(first, method))
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        serves = getattr(self, "_serves", None)
        return getattr(first if serves is None else serves.get(path), method)(self, *args, **kwargs)

    return call


class _Arrivals(importlib.abc.MetaPathFinder):
    """Sees to it that what is made here stands on a Lightning as soon as that has been imported."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """What the other finders find, whose loader tells of the end."""
        lightning = next((each for each in LIGHTNINGS if each.name == fullname), None)
        if lightning is None:
            return None
        others = (each for each in sys.meta_path if each is not self and hasattr(each, "find_spec"))
        specs = (each.find_spec(fullname, path, target) for each in others)
        spec = next((each for each in specs if each is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                for name in _made:
                    _stand_on(name, lightning)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_arrivals = _Arrivals()
