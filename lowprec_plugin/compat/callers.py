"""Who has called an operation of torch's."""

from __future__ import annotations

import sys
from typing import Any


def called_by(package: str) -> bool:
    """Whether the operation under way was called by torch's ``package``: it tells its tensors in no other way."""
    frame: Any = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(package):
            return True
        if not name.startswith(("torch.", "lowprec_plugin.")) and name != "torch":
            return False
        frame = frame.f_back
    return False
