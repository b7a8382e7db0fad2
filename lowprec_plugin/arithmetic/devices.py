"""Accelerators, whatever their make."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def accelerated(device: torch.device) -> bool:
    """Whether ``device`` is the process's accelerator, which has streams and computes while Python goes on."""
    accelerator = torch.accelerator.current_accelerator()
    return accelerator is not None and accelerator.type == device.type


def counts_memory(device: torch.device) -> bool:
    """Whether torch counts the bytes that tensors on ``device`` take: on accelerators, but for those of Apple's."""
    return accelerated(device) and hasattr(torch.get_device_module(device), "memory_stats")


def wait_for(device: torch.device) -> None:
    """Wait until ``device`` has computed all that it was given, so that a clock may be read."""
    if accelerated(device):
        torch.accelerator.synchronize(device)


def device_name(device: torch.device) -> str:
    """Of an accelerator, or of the processor."""
    if accelerated(device):
        named = getattr(torch.get_device_module(device), "get_device_name", None)  # torch.accelerator has none
        return device.type if named is None else str(named(device))
    cpus = Path("/proc/cpuinfo")
    if device.type == "cpu" and cpus.exists():
        for line in cpus.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or device.type
