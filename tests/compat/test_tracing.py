"""Recording fixed-point weights with their memory is refused in words, in every way that torch has."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowprec_plugin import FixedPointTensor, optim
from lowprec_plugin.compat import tracing

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # the exporters' own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "linear": (lambda: nn.Linear(8, 8), lambda: torch.randn(2, 8)),
    "convolution": (lambda: nn.Conv2d(3, 4, 3), lambda: torch.randn(2, 3, 8, 8)),
    "lstm": (lambda: nn.Sequential(nn.LSTM(8, 8)), lambda: torch.randn(3, 2, 8)),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), lambda: torch.randn(2, 5, 8)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(10, 8), nn.LayerNorm(8)), lambda: torch.randint(0, 10, (2, 3))),
}


@pytest.fixture(params=NETS.values(), ids=list(NETS))
def net(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    make, example = request.param
    module = make().eval()  # without dropout
    optim.quantize_(module)
    return module, example()


def traced(module: nn.Module, x: torch.Tensor) -> Any:
    return torch.jit.trace(module, (x,), check_trace=False)


def test_traces(net: tuple[nn.Module, torch.Tensor]) -> None:
    module, x = net
    with pytest.raises(ValueError, match=r"torch\.jit\.trace cannot record fixed-point weights.*to_float_"):
        traced(module, x)
    module(x)  # what was refused leaves nothing behind
    floats = optim.to_float_(copy.deepcopy(module))
    file = io.BytesIO()
    torch.jit.save(traced(floats, x), file)
    file.seek(0)
    for found, expected in zip(torch.jit.load(file)(x), module(x), strict=True):
        torch.testing.assert_close(found, expected)
    assert all(isinstance(param, FixedPointTensor) for param in module.parameters())


def test_scripts() -> None:
    """Saved, such a module would end the process: torch asks before it makes one."""
    module = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    optim.quantize_(module)
    with pytest.raises(ValueError, match=r"torch\.jit\.script cannot record fixed-point weights.*to_float_"):
        torch.jit.script(module)
    with pytest.raises(ValueError, match=r"torch\.jit\.script"):
        torch.jit.script(copy.deepcopy(module))
    x = torch.randn(2, 8)
    scripted = torch.jit.script(optim.to_float_(copy.deepcopy(module)))
    assert torch.equal(scripted(x), module(x))


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    module, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), torch.randn(2, 8)
    optim.quantize_(module)
    # torch wraps what goes wrong under dynamo in an error of its own, with the words inside.
    with pytest.raises(Exception, match=r"torch\.onnx\.export cannot record fixed-point weights[\s\S]*to_float_"):
        torch.onnx.export(module, (x,), tmp_path / "no.onnx", dynamo=dynamo, verbose=False)
    assert not (tmp_path / "no.onnx").exists()
    torch.onnx.export(optim.to_float_(copy.deepcopy(module)), (x,), tmp_path / "x.onnx", dynamo=dynamo, verbose=False)
    assert (tmp_path / "x.onnx").stat().st_size > 256
    assert tracing.recorder() is None


def test_graphs_that_hold_codes_go_through(net: tuple[nn.Module, torch.Tensor]) -> None:
    """``torch.export`` holds the codes and what reads them."""
    module, x = net
    with torch.no_grad():
        exported = torch.export.export(module.eval(), (x,))
        for found, expected in zip(exported.module()(x), module(x), strict=True):
            torch.testing.assert_close(found, expected)


def test_symbolic_trace_goes_through() -> None:
    module, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), torch.randn(2, 3, 8, 8)
    optim.quantize_(module)
    assert torch.equal(torch.fx.symbolic_trace(module)(x), module(x))


def test_a_torch_that_notes_it_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch.onnx._internal.exporter._flags")
    import sys

    monkeypatch.delattr(sys.modules["torch.onnx._internal.exporter._flags"], "_is_onnx_exporting")
    with pytest.raises(ValueError, match=r"has no .*_is_onnx_exporting, which is needed to refuse"):
        tracing.recorder()
