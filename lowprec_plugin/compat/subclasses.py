"""What a class of tensors that holds other tensors is made with; torch's own examples of such classes have it so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.compat.lookup import TORCH, look_up

_FEATURE = "to make a tensor over codes"

#: ``make_wrapper(cls, size, strides=, storage_offset=, dtype=, device=)``: an instance without memory of its own.
make_wrapper: Callable[..., Any] = look_up(Tensor, "_make_wrapper_subclass", host=TORCH, feature=_FEATURE)
#: The ``__torch_function__`` of a class that leaves everything to its ``__torch_dispatch__``.
no_torch_function: Any = look_up(torch._C, "_disabled_torch_function_impl", host=TORCH, feature=_FEATURE)


class CompiledByKey:
    """Has torch.compile keep what it compiled for such tensors; it warns of a class that does not say how."""

    def _stable_hash_for_caching(self) -> str:
        return repr(self.__tensor_flatten__())  # type: ignore[attr-defined]
