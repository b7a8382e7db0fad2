"""The packages that Lightning is published as: ``lightning.pytorch``, and the same code as ``pytorch_lightning``.

Each takes the other's classes for strangers. Nothing here imports one of them before it is needed: see
docs/decisions/0011-two-lightnings.md.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple, TypeGuard


class Lightning(NamedTuple):
    """One of them.

    Attributes:
        name: what its Trainer is imported from.
        fabric: what its Fabric is imported from.
        package: its name, as it is installed.
    """

    name: str
    fabric: str
    package: str

    @property
    def imported(self) -> bool:
        """Whether this process has imported it, to the end."""
        return hasattr(sys.modules.get(self.name), "Trainer")

    @property
    def version(self) -> str:
        """The version that is installed."""
        return version(self.package)

    def get(self, path: str) -> Any:
        """What it has under ``path``, such as ``"callbacks.Timer"``; it is imported.

        Raises:
            ImportError, AttributeError: if it has none.
        """
        return _get(f"{self.name}.{path}")

    def has(self, cls: type) -> bool:
        """Whether ``cls`` or a base of it is a class of this package."""
        return any(f"{each.__module__}.".startswith(f"{self.name}.") for each in cls.__mro__)


#: All of them, the one to take where nothing tells first.
LIGHTNINGS = (
    Lightning("lightning.pytorch", "lightning.fabric", "lightning"),
    Lightning("pytorch_lightning", "lightning_fabric", "pytorch-lightning"),
)


@cache
def _get(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def imported() -> list[Lightning]:
    """Those that this process has imported."""
    return [each for each in LIGHTNINGS if each.imported]


def in_use() -> Lightning:
    """The one that is imported already, or that is imported now: the first that is installed.

    Raises:
        ImportError: if none is installed.
    """
    for each in imported():
        return each
    for each in LIGHTNINGS:
        try:
            import_module(each.name)
        except ModuleNotFoundError as error:
            if error.name not in (each.name, each.name.partition(".")[0]):  # it is there, and lacks something itself
                raise
        else:
            return each
    names = " or ".join(each.package for each in LIGHTNINGS)
    raise ImportError(f"Lightning is not installed, under either of its names: pip install {names}")


def lightning_of(thing: object) -> Lightning | None:
    """The one whose class ``thing`` is an instance of; ``None`` if it is of none."""
    return next((each for each in LIGHTNINGS if each.has(type(thing))), None)


def classes(path: str) -> tuple[type, ...]:
    """The class under ``path``, such as ``"callbacks.Timer"``, of each that is imported."""
    return tuple(each.get(path) for each in imported())


def is_a(thing: object, path: str) -> TypeGuard[Any]:
    """Whether ``thing`` is an instance of the class under ``path``, of whichever Lightning."""
    return isinstance(thing, classes(path))
