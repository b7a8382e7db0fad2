"""Every fused update, found in the package: what tests of all of them iterate over.

Options are those of the float class, with other values than their defaults: a new optimizer brings its tests along.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import torch

from lowprec_plugin.arithmetic.formulas import ALGORITHMS, Algorithm, Hyper
from lowprec_plugin.optim import optimizers
from lowprec_plugin.optim.fused import FUSED, Group, named_algorithms

#: This package's classes, each of which has its float class.
CLASSES: list[Any] = [getattr(optimizers, name) for name in optimizers.__all__]
#: Options that do not say what is computed.
_HOW = {"params", "lr", "foreach", "fused", "capturable", "differentiable"}


def _other(default: Any) -> Any:
    """Another value than ``default`` that an option may have."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, tuple):
        return tuple(_other(each) for each in default)
    return default / 2 if default > 0.1 else 0.1


def group_of(float_class: Any, options: dict[str, Any]) -> Group | None:
    """The parameter group that ``options`` make; ``None`` if the class refuses them."""
    try:
        return dict(float_class([torch.zeros(2)], **{"lr": 0.1, **options}).param_groups[0])
    except ValueError:
        return None


def options_of(float_class: Any, least: int = 0, most: int | None = None) -> Iterator[dict[str, Any]]:
    """Sets of so many options, the largest first, which the class takes."""
    parameters = inspect.signature(float_class).parameters.values()
    others = {each.name: _other(each.default) for each in parameters if each.name not in _HOW}
    for size in range(len(others) if most is None else most, least - 1, -1):
        for names in combinations(others, size):
            options = {name: others[name] for name in names}
            if group_of(float_class, options) is not None:
                yield options


def fused_options(float_class: Any, algorithm: Algorithm) -> list[dict[str, Any]]:
    """Those with which ``float_class`` is updated by ``algorithm``."""
    update, found = FUSED[float_class], []
    for options in options_of(float_class):
        group = group_of(float_class, options)
        if group and update.unfit(group) is None and update.algorithm(group) == algorithm:
            found.append(options)
    return found


def _hypers_of(algorithm: Algorithm) -> list[Hyper]:
    """Of the third step, each once; first those of which the most are neither 0 nor 1."""
    found = {
        algorithm.hyper(**update.hypers(group, 3, False)): None
        for float_class, update in FUSED.items() if algorithm in update.algorithms.values()
        for options in fused_options(float_class, algorithm) if (group := group_of(float_class, options))
    }  # fmt: skip
    return sorted(found, key=lambda hyper: sum(abs(value) in (0, 1) for value in hyper))


#: Hyperparameters of every algorithm, as optimizers give them.
HYPERS = {algorithm: _hypers_of(algorithm) for algorithm in ALGORITHMS}
#: Class and fewest options of every name that the plan has for an algorithm.
NAMED = {
    name: (each, fused_options(each.float_class, algorithm)[-1])
    for name, algorithm in named_algorithms().items()
    for each in CLASSES if name in FUSED[each.float_class].algorithms
}  # fmt: skip


def stored_as(algorithm: Algorithm, weights: str, state: str) -> list[str]:
    """The formats of what ``algorithm`` updates, the parameter's first."""
    return [weights, *(f"{state}^2" if name in algorithm.squared else state for name in algorithm.states)]
