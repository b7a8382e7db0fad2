"""Everything that a training holds at its end, as bytes, and how much of it differs from another's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.tensor.dtensor import fixed_part, local_part

#: Bytes by name; the first part of a name, up to a slash, says of what: ``weights``, ``optimizer``, ``plugin``.
State = dict[str, Tensor]


def flat(tree: Any, name: str) -> State:
    """``tree`` taken apart: what this rank holds of every tensor, of fixed-point ones every plane; text of the rest."""
    if isinstance(tree, Tensor):
        part = fixed_part(tree)
        if part is None:
            return {name: _bytes(local_part(tree))}
        planes = {f"{name} plane {index}": _bytes(plane) for index, plane in enumerate(part.blocks.planes)}
        return planes | {f"{name} format": _text(part.format)}
    if isinstance(tree, Mapping):
        parts = [flat(value, f"{name}/{key}") for key, value in tree.items()]
    elif isinstance(tree, (list, tuple)):
        parts = [flat(value, f"{name}/{index}") for index, value in enumerate(tree)]
    else:
        return {name: _text(tree)}
    return {key: value for part in parts for key, value in part.items()}


def differing(one: State, other: State) -> dict[str, int]:
    """Bits that differ, by name; what only one has, or has in another size, differs in all its bits."""
    found = {}
    for name in sorted(one.keys() | other.keys()):
        a, b = one.get(name), other.get(name)
        if a is None or b is None or a.numel() != b.numel():
            found[name] = 8 * max(0 if each is None else each.numel() for each in (a, b)) or 1
        elif not torch.equal(a, b):
            found[name] = sum(int(byte).bit_count() for byte in (a ^ b)[a != b].tolist())
    return found


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).clone()


def _text(value: Any) -> Tensor:
    return torch.tensor(list(repr(value).encode()), dtype=torch.uint8)
