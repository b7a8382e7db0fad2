"""Every backend has the methods of the protocol and the reference's bits, and no device is served in silence."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lowprec_plugin import FixedPointFormat
from lowprec_plugin.arithmetic import backends, ops, wire_ops
from lowprec_plugin.arithmetic.backend import Backend
from lowprec_plugin.arithmetic.formulas import ALGORITHMS
from lowprec_plugin.arithmetic.native.backend import Native
from tests import cases
from tests.algorithms import HYPERS
from tests.arithmetic.test_wire import empty_chunk, empty_chunks, gradients, laid_out

METHODS = [name for name, value in vars(Backend).items() if inspect.isfunction(value) and not name.startswith("_")]
CPU = torch.device("cpu")


@pytest.fixture
def unchosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has computed nothing yet."""
    monkeypatch.setattr(backends, "_chosen", {})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", backends.BACKENDS)
def test_each_keeps_the_protocol(name: str, method: str) -> None:
    _, *expected = inspect.signature(getattr(Backend, method)).parameters.values()
    found = inspect.signature(getattr(backends.BACKENDS[name], method)).parameters.values()
    assert [(each.name, each.kind) for each in found] == [(each.name, each.kind) for each in expected]


def test_a_type_of_device_has_one_backend() -> None:
    served = [device for backend in backends.BACKENDS.values() for device in backend.devices]
    assert sorted(served) == sorted(set(served))
    assert {"cpu", "cuda"} <= set(served)
    assert all(backend.name == name for name, backend in backends.BACKENDS.items())


def everything(backend: str, device: str) -> list[Tensor]:
    """What every operation of a backend computes, on the CPU."""
    format, found = FixedPointFormat(16, block_size=64), []
    with ops.use_backend(backend):
        for shape in ((), (300,), (40, 37), (8, 3, 3, 3)):
            x = cases.floats(shape).to(device)
            blocks, saturated = ops.quantize(x, format, rounding="stochastic", key=5, first_row=3)
            count = torch.zeros(1, dtype=torch.int64, device=device)
            rounded = ops.rounded(x, FixedPointFormat(8, 4), rounding="stochastic", key=7, saturated=count)
            found += [*blocks.planes, torch.tensor(saturated), rounded, count]
            found += [ops.dequantize(blocks, format, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
            for algorithm in ALGORITHMS:
                stored = [ops.Stored(blocks.map(torch.clone), format) for _ in range(1 + len(algorithm.states))]
                given = HYPERS[algorithm][0]
                done = ops.update_(algorithm, [x.clamp(-9, 9)], [stored], [given], keys=[11], counting=True)
                found += [plane for each in stored for plane in each.blocks.planes]
                found += [torch.tensor(done.saturated), torch.tensor(done.counts[0][:4])]
        finite = [torch.zeros(3, device=device), torch.tensor([0.0, torch.inf], device=device)]
        found += [torch.tensor(ops.first_nonfinite(finite))]
        pieces, blocks_of_all = laid_out([each.to(device) for each in gradients()])
        chunks = [each._make(plane.to(device) for plane in each) for each in empty_chunks(1, blocks_of_all, 8)]
        out = empty_chunk(blocks_of_all, 8)
        out = out._make(plane.to(device) for plane in out)
        wire_ops.round_(pieces, chunks[0], 8, "stochastic")
        wire_ops.sum_(pieces, chunks, out, 8, 3.0, "stochastic")
        wire_ops.read_(pieces, out, 8)
        found += [*chunks[0], *out, *(piece.values for piece in pieces)]
    return [each.cpu() for each in found]


@pytest.mark.parametrize("name", [name for name in backends.BACKENDS if name != "reference"])
def test_each_has_the_bits_of_the_reference(name: str) -> None:
    """The tests of each backend go further; this one is passed by a backend of which nothing else is known."""
    able, reason = backends.BACKENDS[name].available()
    if not able:
        pytest.skip(reason)
    fastest = backends.fastest_device()
    device = str(fastest) if fastest.type in backends.BACKENDS[name].devices else "cpu"  # where Triton is interpreted
    with np.errstate(all="ignore"):  # by NumPy, which would warn of infinities
        expected, found = everything("reference", "cpu"), everything(name, device)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.usefixtures("unchosen")
def test_a_backend_that_cannot_run_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Native, "available", staticmethod(lambda: (False, "there was no compiler")))
    x, format = torch.randn(3, 40), FixedPointFormat(16)
    with pytest.warns(UserWarning, match="slow reference backend on 'cpu': there was no compiler"):
        blocks, _ = ops.quantize(x, format, rounding="stochastic", key=5)
    assert ops.backend_for(CPU) == "reference"  # without a word: a warning fails the test
    monkeypatch.undo()
    for one, other in zip(blocks.planes, ops.quantize(x, format, rounding="stochastic", key=5)[0].planes, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"'fast' is not one of \('reference', 'native', 'triton'\)"):
        ops.use_backend("fast").__enter__()


@pytest.mark.usefixtures("unchosen")
@pytest.mark.parametrize("device", ["mps", "xpu", "hpu", "xla", "lazy", "mtia", "vulkan"])
def test_no_device_is_served_in_silence(device: str) -> None:
    """With a warning where the reference can compute; where torch itself cannot, as here, not at all."""
    with pytest.raises((ValueError, UserWarning), match=f"on '{device}': no backend has kernels for it"):
        ops.backend_for(torch.device(device))


@pytest.mark.usefixtures("unchosen")
def test_nothing_is_computed_on_meta() -> None:
    assert ops.backend_for(torch.device("meta")) == "reference"


def test_a_device_without_kernels() -> None:
    """Its training has the codes of the CPU's; one without float64 is refused; its exchanges run on its streams."""
    command = [sys.executable, "-m", "tests.arithmetic.on_toy"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    root = Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert all(found["equal"])
    assert len(found["equal"]) == 28
    assert found["close"] == [True, True]
    assert found["warnings"] == ["lowprec runs on its slow reference backend on 'toy': no backend has kernels for it"]
    assert found["backend"] == "reference"
    assert "on 'toy': no backend has kernels" in found["refusal"]
    assert "(the toy device has no torch.float64): use the CPU" in found["refusal"]
    assert found["device"] == [True, False, "toy"]
    assert found["stream"] == [True, True, True]
