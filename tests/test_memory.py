"""There is no hidden float copy: every live tensor of the process is walked after a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lowprec_plugin import memory, optim


class Transformer(nn.Module):
    """Ten million parameters."""

    def __init__(self, width: int = 384, layers: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        layer = nn.TransformerEncoderLayer(width, 6, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.head = nn.Linear(width, 256)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(ids)))


def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    ids = torch.randint(256, (2, 17), generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(module(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def held_per_parameter(make: Callable[[Any], torch.optim.Optimizer], format: str | None) -> tuple[float, Any]:
    """Bytes of all storages that training has left, per parameter; and the module and optimizer."""
    before = set(memory.live_storages())
    module = Transformer()
    if format is not None:
        optim.quantize_(module, format)
    optimizer = make(module.parameters())
    for _ in range(2):
        step(module, optimizer)
    after = memory.live_storages()
    held = sum(nbytes for address, (nbytes, _) in after.items() if address not in before)
    elements = sum(param.numel() for param in module.parameters())
    assert elements > 10_000_000
    return held / elements, (module, optimizer)


@pytest.mark.parametrize(
    ("make", "format", "limit"),
    [
        (lambda params: optim.AdamW(params, 1e-3), "fixed16", 6.1),
        (lambda params: optim.AdamW(params, 1e-3, state_word_length=8), "fixed16", 4.1),
        (lambda params: optim.AdamW(params, 1e-3), "fixed8", 3.1),
        (lambda params: optim.SGD(params, 1e-3, momentum=0.9), "fixed16", 4.1),
        (lambda params: optim.adopt(torch.optim.NAdam(params, 1e-3)), "fixed16", 6.1),
        (lambda params: torch.optim.AdamW(params, 1e-3), None, 12.1),
    ],
    ids=["adamw 16", "adamw 16/8", "adamw 8/8", "sgd 16", "generic 16", "float32"],
)
def test_bytes_held(make: Any, format: str | None, limit: float) -> None:
    held, (module, optimizer) = held_per_parameter(make, format)
    assert held <= limit
    # and the report says the same, to a hundredth of a byte (counters of steps, masks)
    assert memory.report(module, optimizer).per_parameter == pytest.approx(held, abs=0.01)


def test_a_hidden_float_copy_is_found() -> None:
    """The control: the walk sees a copy that something keeps aside."""
    hidden: dict[int, torch.Tensor] = {}

    class Hoarder(optim.AdamW):
        def step(self, closure: Any = None) -> None:
            super().step(closure)
            hidden.update({id(p): p.dequantize() for group in self.param_groups for p in group["params"]})

    held, _ = held_per_parameter(lambda params: Hoarder(params, 1e-3), "fixed16")
    assert held > 10


@pytest.mark.parametrize("kind", ["fused", "generic"])
def test_peak_during_a_step_is_one_parameter_as_float(kind: str) -> None:
    """Bytes allocated at once while the optimizer steps, over what was there before."""
    module = Transformer()
    optim.quantize_(module)
    make = {"fused": optim.AdamW, "generic": lambda params: optim.adopt(torch.optim.NAdam(params))}[kind]
    optimizer = make(module.parameters())
    for param in module.parameters():
        param.grad = torch.randn(param.shape)
    optimizer.step()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        optimizer.step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    largest = 4 * max(param.numel() for param in module.parameters())
    if kind == "fused":
        assert peak < 100_000  # nothing of a parameter's size at all
    else:
        # the parameter and its two moments as floats, and the temporaries of the optimizer's own step
        assert peak <= 8 * largest


@pytest.mark.parametrize(
    ("state", "gradients", "limit"),
    [(None, 16, 8.1), (8, 8, 5.1), (8, None, 8.1)],
    ids=["16/16, 16", "16/8, 8", "floats"],
)
def test_peak_of_a_step_is_two_layers_as_floats(state: int | None, gradients: int | None, limit: float) -> None:
    """Over what is held between the backward pass and the step, gradients included; activations aside."""
    module = Transformer()
    optim.quantize_(module, gradient_word_length=gradients)
    optimizer = optim.AdamW(module.parameters(), 1e-3, state_word_length=state)
    step(module, optimizer)
    elements = sum(param.numel() for param in module.parameters())

    def over() -> float:
        """Bytes at the peak over those between."""
        timeline = memory.timeline(module, optimizer, lambda: step(module, optimizer))
        between = next(each for each in timeline.moments if each.phase == "step")
        assert (between.weights + between.state + between.gradients) / elements <= limit
        return max(each.total - each.activations for each in timeline.moments) - between.total

    layers = sorted((4 * param.numel() for param in module.parameters()), reverse=True)
    assert over() <= sum(layers[:2])
    optimizer.register_step_pre_hook(lambda *_: [param.dequantize() for param in module.parameters()] and None)
    assert over() > sum(layers[:2])  # the control: floats of all, for a moment


def test_report_by_kind() -> None:
    module = nn.Sequential(nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512))
    optim.quantize_(module)
    optimizer = optim.AdamW(module.parameters(), state_word_length=8)
    module(torch.randn(4, 512)).sum().backward()
    report = memory.report(module, optimizer)
    assert report.state == 0
    optimizer.step()
    report = memory.report(module, optimizer)
    elements = 512 * 512 + 1024
    assert report.elements == elements
    assert report.weights == 512 * 512 * 2 + 512 * 2 + 1024 * 3
    assert report.state == 2 * (512 * 512 + 512 * 2 + 1024 * 2) + 3 * 4
    assert report.gradients == 4 * elements
    assert report.float32_per_parameter == pytest.approx(12, abs=0.001)
    assert report.saved == 12 * elements + 12 - report.weights - report.state


def test_a_sparse_gradient_is_its_indices_and_values() -> None:
    embedding = nn.Embedding(100, 8, sparse=True)
    embedding(torch.tensor([3, 5, 3])).sum().backward()
    assert memory.gradients(embedding) == (3 * 8 + 3 * 8 * 4,) * 2
