"""How torch marks that it is recording a graph of operations together with their operands' memory."""

from __future__ import annotations

import sys

import torch

from lowprec_plugin.compat.lookup import TORCH, check_module, look_up

_FEATURE = "to refuse torch.jit.trace and torch.onnx.export of fixed-point weights"
_trace: object = look_up(torch.jit, "_trace", host=TORCH, feature=_FEATURE)
#: Where each of the two exporters to ONNX notes that it is at work. The first export imports them.
_FLAGS = "torch.onnx._internal.exporter._flags"
_GLOBALS = "torch.onnx._internal.torchscript_exporter._globals"
for _name in (_FLAGS, _GLOBALS):
    check_module(_name, host=TORCH, feature=_FEATURE)
look_up(_trace, "_trace_module_map", host=TORCH, feature=_FEATURE)
_tracing_state = look_up(torch._C, "_get_tracing_state", host=TORCH, feature=_FEATURE)


def recorder() -> str | None:
    """What is recording now, ``"torch.jit.trace"`` or ``"torch.onnx.export"``; ``None`` where nothing is.

    ``torch.export`` and ``torch.compile`` are none: they hold fixed-point tensors by their codes. Asked at every
    operation, and so quick.

    Raises:
        ValueError: if this torch notes it elsewhere.
    """
    flags, common = sys.modules.get(_FLAGS), sys.modules.get(_GLOBALS)
    if flags is not None and look_up(flags, "_is_onnx_exporting", host=TORCH, feature=_FEATURE):
        return "torch.onnx.export"
    if common is not None and look_up(common, "GLOBALS", host=TORCH, feature=_FEATURE).in_onnx_export:
        return "torch.onnx.export"
    # Of an operation that it records as one, torch.jit.trace hides its state: the map says so then.
    traced = _tracing_state() is not None or _trace._trace_module_map is not None  # type: ignore[attr-defined]
    return "torch.jit.trace" if traced else None
