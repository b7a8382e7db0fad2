"""The names of parameters, and what they are called in messages and counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.optim.params import params_of
from lowprec_plugin.tensor.dtensor import local_part
from lowprec_plugin.text.option_error import Option, OptionError


def name_of(param: Tensor) -> str:
    """The parameter's name; empty if it has none."""
    name: str = getattr(local_part(param), "label", "")
    return name


def described(param: Tensor) -> str:
    """The parameter in a message: by its name, or by its shape if it has none."""
    name = name_of(param)
    return f"parameter {name!r}" if name else f"a parameter of shape {tuple(param.shape)}"


def names_in(optimizer: torch.optim.Optimizer) -> dict[int, str]:
    """The name of each parameter, by its id; its place in ``optimizer`` where it has none, or not alone."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for place, param in enumerate(params_of(optimizer)):
        name = name_of(param)
        names[id(param)] = f"parameter {place}" if not name or name in taken else name
        taken.add(name)
    return names


def patterns_of(patterns: Iterable[str], name: str = "keep_float") -> list[str]:
    """The patterns of names that the argument ``name`` is given, one as text or several.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(patterns, str):
        return [patterns]
    several: list[Any] = [patterns]
    if isinstance(patterns, Iterable) and not isinstance(patterns, Tensor):
        several = list(patterns)
    if not all(isinstance(each, str) for each in several):
        raise OptionError(
            Option.given(name, patterns), " is not a name or several; write patterns as ['*.bias'], or [] for none"
        )
    return several
