"""The stack says who calls, up to the first frame that is not torch's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from lowprec_plugin.compat import callers


def function_in(module: str) -> Callable[[Callable[[], Any]], Any]:
    """A function of a module of this name, which calls what it is given."""
    made: dict[str, Any] = {"__name__": module}
    exec("def call(inner): return inner()", made)
    return made["call"]  # type: ignore[no-any-return]


def test_torchs_modules_are_found_by_its_public_functions() -> None:
    for name in (callers._FSDP2, callers._DISTRIBUTING):
        assert isinstance(sys.modules[name], ModuleType)
        assert name.startswith("torch.distributed.")


@pytest.mark.parametrize(
    ("between", "seen"),
    [
        ([], True),
        (["torch.nn", "lowprec_plugin.tensor", "torch"], True),
        (["torch.nn", "somebody"], False),
        (["torchvision"], False),
    ],
)
def test_the_caller_is_seen_through_torch_and_this_package_alone(between: list[str], seen: bool) -> None:
    ask: Callable[[], Any] = callers.fsdp_calls
    for module in between:
        ask = partial(function_in(module), ask)  # which has no frame of its own
    assert function_in(f"{callers._FSDP2}.inside")(ask) is seen


def test_only_the_module_that_is_meant_is_seen() -> None:
    assert function_in(callers._DISTRIBUTING)(callers.distribute_tensor_calls) is True
    assert function_in(f"{callers._DISTRIBUTING}2")(callers.distribute_tensor_calls) is False
    assert callers.distribute_tensor_calls() is False
