"""Functions of torch outside of what overrides them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from lowprec_plugin.compat.lookup import TORCH, check_names, look_up

#: Functions with which attention and the encoder layer compute in one piece, by the names that an override sees.
FAST_PATHS = ("_transformer_encoder_layer_fwd", "_native_multi_head_attention")


def outside_overrides() -> AbstractContextManager[Any]:
    """In which no mode and no class overrides functions of torch.

    Raises:
        ValueError: if this torch has no such context.
    """
    feature = "to compute beside what emulation sees"
    return look_up(torch._C, "DisableTorchFunction", host=TORCH, feature=feature)()  # type: ignore[no-any-return]


def check_fast_paths() -> None:
    """Check that torch has each of ``FAST_PATHS``: of another name, they would pass unseen.

    Raises:
        ValueError: for the first that it lacks.
    """
    check_names(torch, FAST_PATHS, host=TORCH, feature="to refuse what emulation cannot round in between")
