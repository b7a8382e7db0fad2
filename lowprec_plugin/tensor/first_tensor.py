"""What waits for the first fixed-point tensor.

Importing the package changes nothing for those who use none: what has an effect on all of torch is done when the first
one is made, from floats or from a file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

#: Empty once the first tensor has been made.
waiting: list[Callable[[], object]] = []
_one_at_a_time = threading.RLock()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def come() -> None:
    """Do, once, all that waits."""
    with _one_at_a_time:
        while waiting:
            waiting.pop(0)()
