"""Memory that a process has of its machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from lowprec_plugin.arithmetic.devices import counts_memory


def peak_bytes(device: torch.device) -> int | None:
    """Most bytes of ``device`` that tensors have taken, if torch counts them; else this process's resident memory now.

    ``None`` where the system does not say.
    """
    if counts_memory(device):
        return torch.accelerator.max_memory_allocated(device)
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the most so far: bytes on macOS, KiB elsewhere
    return most if sys.platform == "darwin" else 1024 * most
