"""What a step's memory is for, over time, beside what torch's profiler has of the allocator."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowprec_plugin import memory, optim
from lowprec_plugin.memory.timeline import KINDS
from tests.plan.models import small_transformer

#: Bits of weights, of state and of gradients; the first is float32.
SETTINGS: list[tuple[int | None, int | None, int | None]] = [
    (None, None, None), (16, None, None), (16, 8, None), (16, None, 16), (16, 8, 8),
]  # fmt: skip
WIDTH = 256


def training(module: nn.Module, setting: tuple[int | None, int | None, int | None]) -> torch.optim.Optimizer:
    weights, state, gradients = setting
    if weights is None:
        return torch.optim.AdamW(module.parameters(), 1e-3)
    optim.quantize_(module, f"fixed{weights}", gradient_word_length=gradients)
    return optim.AdamW(module.parameters(), 1e-3, state_word_length=state)


def stepping(module: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> Callable[[], None]:
    def step() -> None:
        module(batch).square().mean().backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()  # state comes about
    return step


def layers(count: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(count)))


def allocated_at_most(step: Callable[[], None]) -> int:
    """Of the allocator: bytes at once, over what was there before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("make", [layers, small_transformer])
def test_the_peak_is_the_allocators(make: Any, setting: Any) -> None:
    module = make()
    optimizer = training(module, setting)
    batch = torch.randint(256, (2, 16)) if make is small_transformer else torch.randn(8, WIDTH)
    step = stepping(module, optimizer, batch)
    timeline = memory.timeline(module, optimizer, step)
    before = timeline.moments[0]
    report = memory.report(module, optimizer)
    assert (before.weights, before.buffers, before.state) == (report.weights, report.buffers, report.state)
    assert timeline.peak.total - before.total == pytest.approx(allocated_at_most(step), rel=0.03)
    assert timeline == memory.timeline(module, optimizer, step)
    assert timeline.moments[-1].total == pytest.approx(before.total, abs=1000)  # what came has gone


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_each_kind_is_what_it_is_called(setting: Any) -> None:
    module = layers()
    optimizer = training(module, setting)
    step, batch = stepping(module, optimizer, torch.randn(8, WIDTH)), 4 * 8 * WIDTH
    timeline = memory.timeline(module, optimizer, step)
    assert [phase for at, phase in timeline.starts] == ["forward", "backward", "step"]
    stepped = next(each for each in timeline.moments if each.phase == "step")
    assert stepped.activations == 0
    matrices = 3 * WIDTH * WIDTH * (4 if setting[2] is None else setting[2] // 8)
    assert stepped.gradients == pytest.approx(matrices, rel=0.02)
    last = [each for each in timeline.moments if each.phase == "forward"][-1]
    # The backward pass needs the inputs of the linear layers but the first's, which was there before, and the last
    # result twice: a ReLU keeps it, and the square.
    assert last.activations == timeline.activations == pytest.approx(3 * batch, abs=64)
    assert sum(last.by_kind.values()) == last.total
    assert stepped.temporaries < 1000


def test_a_hidden_float_copy_is_seen() -> None:
    """The control: of a copy that is kept, and of one that is gone when the step is over."""
    module = layers()
    optimizer = training(module, (16, 8, 8))
    step = stepping(module, optimizer, torch.randn(8, WIDTH))
    honest = memory.timeline(module, optimizer, step)
    hidden: list[Tensor] = []

    def hoarding() -> None:
        hidden.extend(param.dequantize() for param in module.parameters())  # type: ignore[operator]
        step()

    def dropping() -> None:
        hoarding()
        hidden.clear()

    floats = sum(4 * param.numel() for param in module.parameters())
    for wrong in (hoarding, dropping):
        more = memory.timeline(module, optimizer, wrong).peak.total - honest.peak.total
        assert more == pytest.approx(floats, rel=0.01)


def test_nothing_of_the_step_changes() -> None:
    module = layers()
    optimizer = training(module, (12, 8, 8))
    step = stepping(module, optimizer, torch.randn(8, WIDTH))
    other, state = copy.deepcopy(module), copy.deepcopy(optimizer.state_dict())
    step()
    memory.timeline(module, optimizer, lambda: None)
    plain = [plane.clone() for param in module.parameters() for plane in memory.planes(param)]
    module.load_state_dict(other.state_dict())
    optimizer.load_state_dict(state)
    memory.timeline(module, optimizer, step)
    assert all(map(torch.equal, plain, [plane for param in module.parameters() for plane in memory.planes(param)]))


def test_micro_batches_a_frozen_layer_and_recomputed_activations() -> None:
    module = layers(4)
    module[0].requires_grad_(False)
    trained = [param for param in module.parameters() if param.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1)

    def step(batch: Tensor, again: bool) -> None:
        for part in batch.split(64):
            x = checkpoint(module, part, use_reentrant=False) if again else module(part)
            x.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    batch = torch.randn(128, WIDTH)
    kept = memory.timeline(module, optimizer, lambda: step(batch, again=False))
    assert [phase for _, phase in kept.starts] == ["forward", "backward", "forward", "backward", "step"]
    assert max(each.gradients for each in kept.moments) == sum(4 * param.numel() for param in trained) + 4 * WIDTH * (
        WIDTH + 1
    )
    again = memory.timeline(module, optimizer, lambda: step(batch, again=True))
    assert again.activations < kept.activations / 2
    # What is computed again is a temporary of the backward pass.
    most = [max(each.temporaries for each in every.moments) for every in (kept, again)]
    assert most[1] - most[0] >= kept.activations - again.activations - 4 * 64 * WIDTH


def test_a_closure_and_two_optimizers() -> None:
    module = layers(2)
    optimizers = [torch.optim.Adam(layer.parameters(), 1e-3) for layer in module]

    def step() -> None:
        for optimizer in optimizers:

            def closure() -> Tensor:
                optimizer.zero_grad()  # noqa: B023
                loss = module(torch.ones(4, WIDTH)).square().mean()
                loss.backward()
                return loss

            optimizer.step(closure)

    first = memory.timeline(module, optimizers, step)
    assert first.moments[0].state == 0
    assert first.moments[-1].state == memory.report(module, optimizers).state  # though it came meanwhile
    assert [phase for _, phase in first.starts] == ["forward", "backward", "step"] * 2


def test_what_is_resized_is_as_large_as_it_is_now() -> None:
    """FSDP2 frees what it has gathered so: no operation tells."""
    module, gathered = layers(1), torch.empty(1 << 20)
    storage = gathered.untyped_storage()
    storage.resize_(0)

    def step() -> None:
        for _ in range(3):
            storage.resize_(4 << 20)
            torch.ones(1 << 20, out=gathered)
            storage.resize_(0)
            assert torch.ones(1 << 18).numel()

    peak = memory.timeline(module, [], step).peak
    assert peak.total - peak.weights == pytest.approx((4 << 20), abs=64)


def test_views_of_what_was_there_before_are_nothing_new() -> None:
    module, batch = layers(1), torch.randn(64, WIDTH)

    def peak(step: Callable[[], Any]) -> int:
        return memory.timeline(module, [], step).peak.temporaries

    assert peak(lambda: batch.view(-1)[5:].t()) == 0
    assert peak(lambda: batch.view(-1).clone()) == batch.nbytes


def test_a_module_without_memory() -> None:
    """On the meta device the figures are those of a real one, and nothing is allocated."""

    def activations(device: str) -> int:
        with torch.device(device):
            module, batch = layers(), torch.ones(8, WIDTH)
        return memory.timeline(module, [], lambda: module(batch).square().mean().backward()).activations

    assert activations("meta") == activations("cpu") > 0


def test_the_picture(tmp_path: Path) -> None:
    module = layers()
    optimizer = training(module, (16, 8, 8))
    step = stepping(module, optimizer, torch.randn(8, WIDTH))
    timeline = memory.timeline(module, optimizer, step)
    timeline.save(tmp_path / "step.svg", "16/8 with gradients of 8 bits & more")
    svg = ET.fromstring((tmp_path / "step.svg").read_text())
    space = {"": "http://www.w3.org/2000/svg"}
    assert svg.findtext("title", namespaces=space) == "16/8 with gradients of 8 bits & more"
    assert f"At most {timeline.peak.total:,} bytes, in the backward pass" in (svg.findtext("desc", None, space) or "")
    shapes = svg.findall(".//polygon", space)
    shown = [kind for kind in KINDS if any(each.by_kind[kind] for each in timeline.moments)]
    assert [shape.findtext("title", None, space) for shape in shapes] == shown
    # The top of all is at the peak, however many moments share a column.
    tops = [float(place.split(",")[1]) for shape in shapes for place in shape.get("points", "").split()]
    assert min(tops) == 0
    assert "http" not in timeline.chart()  # as part of a page


def test_what_cannot_be_followed_is_refused() -> None:
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        memory.timeline(nn.ReLU(), [], lambda: None)
    with pytest.raises(ValueError, match="module"):
        memory.timeline(3, [], lambda: None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="optimizer"):
        memory.timeline(layers(), 3, lambda: None)  # type: ignore[arg-type]
    module = layers(1)
    with pytest.raises(KeyError), memory.MemoryTracker(module):
        raise KeyError
    assert not any(param._backward_hooks for param in module.parameters())
