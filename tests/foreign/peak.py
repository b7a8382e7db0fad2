"""Bytes of memory that a step takes above what it finds, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from lowprec_plugin import optim

SIZE, LAYERS = 32, 8
MARK = "the step that is measured"


def parameters_at_once(make: Callable[[nn.Module], Any], format: str | None) -> float:
    """The peak of the third step of eight equal matrices, in float32 copies of one of them."""
    # From before the network is made, so that all is known that the step frees.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        torch.manual_seed(0)
        net = nn.Sequential(*(nn.Linear(SIZE, SIZE, bias=False) for _ in range(LAYERS)))
        if format is not None:
            optim.quantize_(net, format)
        optimizer = make(net)
        if format is not None:
            optimizer = optim.adopt(optimizer)
        for step in range(3):
            net(torch.randn(2, SIZE)).square().mean().backward()
            with record_function(MARK if step == 2 else "earlier"):
                optimizer.step()
            optimizer.zero_grad()
    events = profiled.profiler.kineto_results.events()
    (mark,) = (event for event in events if event.name() == MARK)
    start, end = mark.start_ns(), mark.start_ns() + mark.duration_ns()
    held = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        if event.name() == "[memory]" and start <= event.start_ns() <= end:
            held += event.nbytes()
            peak = max(peak, held)
    return peak / (4 * SIZE * SIZE)
