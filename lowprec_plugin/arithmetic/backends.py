"""The backends, and which of them serves a device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from lowprec_plugin.arithmetic.backend import Backend
from lowprec_plugin.arithmetic.native.backend import Native
from lowprec_plugin.arithmetic.reference.backend import Reference
from lowprec_plugin.arithmetic.triton.backend import Triton

REFERENCE = Reference()
#: By name. Each says itself which types of device it serves.
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (REFERENCE, Native(), Triton())}

_forced: ContextVar[Backend | None] = ContextVar("lowprec_backend", default=None)
_chosen: dict[str, Backend] = {}


def serving(device: torch.device) -> Backend:
    """The backend that serves tensors on ``device``, or the one that :func:`use_backend` demands.

    Where none has kernels for the type of device, or they cannot run here, the reference serves, with one warning that
    says why.

    Raises:
        ValueError: if the reference would have to serve, and cannot compute there.
    """
    forced = _forced.get()
    if forced is not None:
        return forced
    chosen = _chosen.get(device.type)
    return _choose(device) if chosen is None else chosen


def backend_for(device: torch.device) -> str:
    """The name of the backend that serves tensors on ``device``, see :func:`serving`."""
    return serving(device).name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the context, do all arithmetic on the backend called ``name``.

    Raises:
        ValueError: if there is no such backend, or it cannot run here.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is not one of {tuple(BACKENDS)}")
    able, reason = BACKENDS[name].available()
    if not able:
        raise ValueError(f"backend {name!r} cannot run here: {reason}")
    token = _forced.set(BACKENDS[name])
    try:
        yield
    finally:
        _forced.reset(token)


def fastest_device() -> torch.device:
    """The accelerator, if there is one that a backend has kernels for; else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or _made_for(accelerator) is None:
        return torch.device("cpu")
    return accelerator


def _made_for(device: torch.device) -> Backend | None:
    return next((backend for backend in BACKENDS.values() if device.type in backend.devices), None)


def _choose(device: torch.device) -> Backend:
    """Choose for the type of ``device``, once per process."""
    backend = _made_for(device)
    able, reason = (False, "no backend has kernels for it") if backend is None else backend.available()
    if backend is None or not able:
        if failure := REFERENCE.failure_on(device):
            raise ValueError(
                f"there is no fixed-point arithmetic on {device.type!r}: {reason}, and the reference fails "
                f"there ({failure}): use the CPU, or a GPU of NVIDIA or AMD (module.to, or Lightning's "
                "Trainer(accelerator='cpu'))"
            )
        backend = REFERENCE
    _chosen[device.type] = backend
    if not able:
        warnings.warn(f"lowprec runs on its slow reference backend on {device.type!r}: {reason}", stacklevel=4)
    return backend
