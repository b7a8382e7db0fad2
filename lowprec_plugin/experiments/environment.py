"""What a run runs on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from lowprec_plugin.compat.lightnings import Lightning
from lowprec_plugin.version import __version__


def versions(lightning: Lightning) -> dict[str, str]:
    """Of Python and the packages that the figures of a run by ``lightning`` depend on."""
    return {
        "python": platform.python_version(), "torch": torch.__version__,
        lightning.package: lightning.version, "lowprec_plugin": __version__,
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
