"""torch's trees: tensors in nested dictionaries, lists and tuples. Its package of them has no public name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lowprec_plugin.compat.lookup import TORCH, look_up

_FEATURE = "to find tensors in nested dictionaries and lists"
_trees = look_up(torch.utils, "_pytree", host=TORCH, feature=_FEATURE)

#: ``tree_leaves(tree)``: what lies in ``tree``, in order.
tree_leaves: Callable[..., list[Any]] = look_up(_trees, "tree_leaves", host=TORCH, feature=_FEATURE)
#: ``tree_flatten(tree)``: its leaves, and what it is made of.
tree_flatten: Callable[..., tuple[list[Any], Any]] = look_up(_trees, "tree_flatten", host=TORCH, feature=_FEATURE)
#: ``tree_map(function, tree)``: a tree with ``function`` of each leaf in its place.
tree_map: Callable[..., Any] = look_up(_trees, "tree_map", host=TORCH, feature=_FEATURE)
#: ``tree_map_only(kind, function, tree)``: the same, of the leaves of class ``kind`` alone.
tree_map_only: Callable[..., Any] = look_up(_trees, "tree_map_only", host=TORCH, feature=_FEATURE)
