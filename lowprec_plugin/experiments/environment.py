"""What a run runs on."""

from __future__ import annotations

import platform

import torch

from lowprec_plugin.compat.lightnings import Lightning
from lowprec_plugin.version import __version__


def versions(lightning: Lightning) -> dict[str, str]:
    """Of Python and the packages that the figures of a run by ``lightning`` depend on."""
    return {
        "python": platform.python_version(), "torch": torch.__version__,
        lightning.package: lightning.version, "lowprec_plugin": __version__,
    }  # fmt: skip
