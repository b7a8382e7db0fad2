"""Modes that see every operation as torch carries it out, below autograd. Their module has no public name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowprec_plugin.compat.lookup import TORCH, look_up

_FEATURE = "to see what a step allocates"

if TYPE_CHECKING:

    class DispatchMode:
        """A context manager, within which operations come to its ``__torch_dispatch__``."""

        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            """Carry out ``func``; ``NotImplemented`` leaves it to the classes ``types``, whose operations come too."""

        def __enter__(self) -> Any:
            """See operations from now on."""

        def __exit__(self, *args: object) -> None:
            """No longer."""

else:
    _modes = look_up(torch.utils, "_python_dispatch", host=TORCH, feature=_FEATURE)
    DispatchMode = look_up(_modes, "TorchDispatchMode", host=TORCH, feature=_FEATURE)
