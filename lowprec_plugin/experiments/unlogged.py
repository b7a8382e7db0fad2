"""What stands in for any logger: a module may call of its own whatever that has, and it goes nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lowprec_plugin.compat.bases import DummyLogger


class TakesAnything:
    """Has any other attribute too."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # Python's own questions, such as __deepcopy__
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return Nothing()


class Nothing(TakesAnything):
    """A method, a mapping or a context, whatever it is taken for: Weights & Biases' run, Neptune's, and their parts."""

    def __call__(self, *args: Any, **kwargs: Any) -> Nothing:
        return self

    def __getitem__(self, key: Any) -> Nothing:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:  # else Python asks for one item after the other
        return iter(())

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *args: Any) -> None:
        pass


class Unlogged(TakesAnything, DummyLogger):
    """Logs nothing."""

    @property
    def experiment(self) -> Any:
        return Nothing()
