"""Names that earlier versions had: of modules, which pickles hold and programs import, and of state in files."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

#: What may be in a pickle, or was in the documents.
_MOVED = {
    "counts": "arithmetic.update_counts",
    "emulation": "activations.emulation",
    "emulation.emulator": "activations.emulation.emulator",
    "emulation.settings": "activations.emulation.settings",
    "kept": "activations.packed",
    "optim.float_lion": "optim.lion",
    "optim.moving": "optim.module_apply",
    "trainings": "experiments",
    "trainings.making": "experiments.making",
}


class _Moved(ModuleType):
    """A module that has another name now, from which everything is taken."""

    def __init__(self, name: str, now: str) -> None:
        super().__init__(name, f"Now {now}.")
        self.__path__: list[str] = []  # what was a folder may be asked for what was in it
        self.now = now

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(import_module(self.now), name)


def keep() -> None:
    """Let them be imported. Nothing is imported before something of one is asked for."""
    package = __name__.rpartition(".")[0]
    for name, now in _MOVED.items():
        sys.modules.setdefault(f"{package}.{name}", _Moved(f"{package}.{name}", f"{package}.{now}"))


#: What state of a parameter was called: by a text for messages in place of the parameter's name.
_STATE = re.compile(
    r"(?:parameter (?P<quote>['\"])(?P<parameter>.+)(?P=quote)|a parameter of shape \([\d, ]*\))\.(?P<state>.+)"
)


def label_of_today(label: str) -> str:
    """What a tensor is called today whose label in a file is ``label``."""
    found = _STATE.fullmatch(label)
    return label if found is None else ".".join(filter(None, (found["parameter"], found["state"])))
