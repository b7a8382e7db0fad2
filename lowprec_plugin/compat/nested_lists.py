"""Collectives whose tensors are in lists of lists, where torch's dispatcher looks for no classes of tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from lowprec_plugin.compat.lookup import TORCH, look_up

_FEATURE = "to refuse collectives of fixed-point tensors in lists"
_libraries: list[Any] = []  # what they implement lasts as long as they do


def look_first(operators: tuple[str, ...], look: Callable[[Any, tuple[Any, ...]], object]) -> None:
    """Call ``look`` with the operator and its arguments before each of c10d's ``operators``, for what it may raise.

    It is so from here on, in the whole process, and whatever the device (docs/decisions/0015-data-of-floats.md).

    Raises:
        ValueError: if this torch has no such operator, or keeps its keys elsewhere.
    """
    keys = look_up(torch._C, "DispatchKey", host=TORCH, feature=_FEATURE)
    key = look_up(keys, "BackendSelect", host=TORCH, feature=_FEATURE)  # every operator passes it, on every device
    library: Any = torch.library.Library("c10d", "IMPL")  # type: ignore[no-untyped-call]
    for name in operators:
        operator = look_up(torch.ops.c10d, name, host=TORCH, feature=_FEATURE).default
        library.impl(name, partial(_looked, operator, key, look), key.name, with_keyset=True)
    _libraries.append(library)


def _looked(operator: Any, key: Any, look: Callable[[Any, tuple[Any, ...]], object], keys: Any, *args: Any) -> Any:
    look(operator, args)
    return operator.redispatch(keys.remove(key), *args)
