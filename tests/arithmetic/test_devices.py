"""What is asked of an accelerator is asked of torch's own, and of no other device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lowprec_plugin.arithmetic import devices
from lowprec_plugin.arithmetic.backends import fastest_device
from lowprec_plugin.telemetry import peak_bytes

CPU = torch.device("cpu")


def accelerator(monkeypatch: pytest.MonkeyPatch, name: str, **module: object) -> torch.device:
    """As on a machine whose torch has this accelerator, and this module for it."""
    device = torch.device(name, 0)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device(name))
    monkeypatch.setattr(torch, "get_device_module", lambda asked: SimpleNamespace(**module))
    return device


def test_the_cpu_is_none() -> None:
    assert not devices.accelerated(CPU)
    assert not devices.counts_memory(CPU)
    devices.wait_for(CPU)
    assert devices.device_name(CPU)


@pytest.mark.parametrize("name", ["cuda", "xpu"])
def test_one_that_counts(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    device = accelerator(monkeypatch, name, memory_stats=dict, get_device_name=lambda device: f"the best {device}")
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda device: 17)
    devices.wait_for(device)
    devices.wait_for(CPU)
    assert waited == [device]
    assert devices.device_name(device) == f"the best {name}:0"
    assert peak_bytes(device) == 17
    assert peak_bytes(CPU) != 17
    assert fastest_device() == (torch.device("cuda") if name == "cuda" else CPU)  # no backend has kernels for XPUs


def test_one_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    device = accelerator(monkeypatch, "mps")
    assert devices.accelerated(device)
    assert not devices.counts_memory(device)
    assert devices.device_name(device) == "mps"
    assert peak_bytes(device) == pytest.approx(peak_bytes(CPU), rel=0.1)
    assert fastest_device() == CPU
