"""Trains on the CPU and on a device that no backend has kernels for, and prints what came of it as JSON."""

from __future__ import annotations

import json
import warnings

import torch
from torch import Tensor, nn

from lowprec_plugin import FixedPointTensor, optim
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.devices import accelerated, counts_memory, device_name
from lowprec_plugin.comm.ddp import DDPState
from tests import cases, toy

TOY = torch.device("toy")


def train(device: str) -> tuple[list[Tensor], list[Tensor]]:
    """The planes after three steps on given gradients, and the floats of the last forward and backward."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 300), nn.Tanh(), nn.Linear(300, 2))
    optim.quantize_(module)
    module.to(device)
    optimizer = optim.AdamW(module.parameters(), 0.01)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 12, generator=generator).to(device).requires_grad_()
        output = module(x)
        output.square().sum().backward()
        for param in module.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(device)
        optimizer.step()
    assert x.grad is not None
    return [each.cpu() for each in cases.planes(module, optimizer)], [output.detach().cpu(), x.grad.cpu()]


def refusal() -> str:
    """What is said where the device has no float64; the second time as well."""
    said = set()
    toy.lacking.add(torch.float64)
    for _ in range(2):
        try:
            FixedPointTensor.quantize(torch.randn(3, 4).to(TOY), "fixed16")
        except ValueError as error:
            said.add(str(error))
    toy.lacking.clear()
    return said.pop() if len(said) == 1 else f"{len(said)} refusals"


def on_a_stream() -> list[bool]:
    """Whether a bucket's exchange runs on a stream of its own, which is left afterwards, and whether it is done."""
    state = DDPState.__new__(DDPState)
    state._side = {}
    buffer = torch.ones(3).to("toy:0")
    before, during = torch.accelerator.current_stream(buffer.device), []

    def exchange() -> Tensor:
        during.append(torch.accelerator.current_stream(buffer.device))
        return buffer.add_(1)

    future = state._on_stream(exchange, buffer)
    return [
        during == list(state._side.values()),
        torch.accelerator.current_stream(buffer.device) == before,
        future.value().cpu().tolist() == [2.0, 2.0, 2.0],
    ]


if __name__ == "__main__":
    found: dict[str, object] = {"refusal": refusal()}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        (expected, near), (planes, floats) = train("cpu"), train("toy")
        found["equal"] = [torch.equal(one, other) for one, other in zip(expected, planes, strict=True)]
        found["close"] = [torch.allclose(one, other, 1e-4, 1e-5) for one, other in zip(near, floats, strict=True)]
    found["warnings"] = [str(each.message) for each in warned]
    found["backend"] = ops.backend_for(TOY)
    found["device"] = [accelerated(TOY), counts_memory(TOY), device_name(TOY)]
    found["stream"] = on_a_stream()
    print(json.dumps(found))
