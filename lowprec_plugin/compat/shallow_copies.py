"""What may become the ``.data`` of an ordinary tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.compat.lookup import TORCH, look_up

_OPERATOR = "_has_compatible_shallow_copy_type"
_FEATURE = "to refuse codes as the .data of floats"
_libraries: list[Any] = []  # what they implement lasts as long as they do


def refuse_as_data(kind: type[Tensor], message: str) -> None:
    """Refuse tensors of class ``kind`` as ``.data`` of ordinary ones, with a ``ValueError`` that says ``message``.

    torch would give these the memory that it believes those to have, but asks an operator first whether they go
    together. It answers in another way from here on, in the whole process; of tensors without a ``__torch_dispatch__``
    alone, torch answers itself as before (docs/decisions/0015-data-of-floats.md).

    Raises:
        ValueError: if this torch has no such operator.
    """
    asked = look_up(torch, _OPERATOR, host=TORCH, feature=_FEATURE)
    keys = look_up(torch._C, "DispatchKey", host=TORCH, feature=_FEATURE)
    key = look_up(keys, "PythonTLSSnapshot", host=TORCH, feature=_FEATURE)  # of tensors with a __torch_dispatch__ alone
    key_set = look_up(torch._C, "DispatchKeySet", host=TORCH, feature=_FEATURE)(key)
    excluded = look_up(torch._C, "_ExcludeDispatchKeyGuard", host=TORCH, feature=_FEATURE)

    def go_together(tensor: Tensor, source: Tensor) -> bool:
        if isinstance(source, kind) and type(tensor) in (Tensor, torch.nn.Parameter):
            raise ValueError(message)
        with excluded(key_set):
            return bool(asked(tensor, source))

    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    library.impl(_OPERATOR, go_together, key.name)
    _libraries.append(library)
