"""What a run runs on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from lowprec_plugin.compat.lightnings import imported
from lowprec_plugin.version import __version__


def versions() -> dict[str, str]:
    """Of Python and the packages that a run's figures depend on."""
    return {
        "python": platform.python_version(), "torch": torch.__version__,
        **{each.package: each.version for each in imported()}, "lowprec_plugin": __version__,
    }  # fmt: skip


def device_name(device: torch.device) -> str:
    """Of a GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    if device.type == "cpu" and cpus.exists():
        for line in cpus.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or device.type
