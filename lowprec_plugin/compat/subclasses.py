"""What a class of tensors that holds other tensors is made with; torch's own examples of such classes have it so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.compat.lookup import TORCH, look_up

_FEATURE = "to make a tensor over codes"

_make: Callable[..., Any] = look_up(Tensor, "_make_wrapper_subclass", host=TORCH, feature=_FEATURE)
_refuse_writing: Callable[[Tensor], None] = look_up(
    torch._C, "_set_throw_on_mutable_data_ptr", host=TORCH, feature=_FEATURE
)
#: The ``__torch_function__`` of a class that leaves everything to its ``__torch_dispatch__``.
no_torch_function: Any = look_up(torch._C, "_disabled_torch_function_impl", host=TORCH, feature=_FEATURE)


def make_wrapper(cls: type[Any], size: Any, **facts: Any) -> Any:
    """An instance of ``cls`` without memory of its own: whoever takes its address to write there, gets an error.

    Args:
        size: the shape.
        facts: ``strides``, ``storage_offset``, ``dtype``, ``device``.
    """
    made = _make(cls, size, storage_size=0, **facts)
    _refuse_writing(made)
    return made


class CompiledByKey:
    """Has torch.compile keep what it compiled for such tensors; it warns of a class that does not say how."""

    def _stable_hash_for_caching(self) -> str:
        return repr(self.__tensor_flatten__())  # type: ignore[attr-defined]
