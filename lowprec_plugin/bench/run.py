"""Time the fused step and a whole training step against float32's: what counts is the ratio of their medians."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lowprec_plugin import optim
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.backends import fastest_device
from lowprec_plugin.arithmetic.devices import device_name
from lowprec_plugin.bench.models import Transformer, matrices
from lowprec_plugin.bench.timing import FLOAT32, in_turns, seconds
from lowprec_plugin.formats import check_integer
from lowprec_plugin.optim.quantize import quantize_
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.gradient import FixedPointGradient
from lowprec_plugin.text.files import whole_text
from lowprec_plugin.version import __version__


class Setting(NamedTuple):
    """Bits of weights, of state, and of gradients, ``None`` being floats; and the rounding of all."""

    weights: int
    state: int
    gradients: int | None = None
    rounding: str = "stochastic"


SETTINGS = {
    "16": Setting(16, 16),
    "16/8": Setting(16, 8),
    "16/8/16": Setting(16, 8, 16),
    "16/8/8": Setting(16, 8, 8),
    "16 nearest": Setting(16, 16, rounding="nearest"),
}


def run_bench(elements: int = 2**24, rounds: int = 15, device: str | None = None, output: str = "") -> dict[str, Any]:
    """Print and return a table of times: the AdamW step alone, and a training step of a transformer.

    Args:
        elements: parameters that the optimizer's step is timed on.
        rounds: turns of each side; medians are reported.
        device: ``"cpu"`` or ``"cuda"``, say; by default the accelerator, if a backend has kernels for it.
        output: a JSON file to write as well.

    Raises:
        OptionError: for a number below 1.
    """
    check_integer(elements, "elements", 1)
    check_integer(rounds, "rounds", 1)
    where = torch.device(device or fastest_device())
    record: dict[str, Any] = {
        "version": __version__,
        "torch": torch.__version__,
        "device": device_name(where),
        "threads": torch.get_num_threads(),
        "backend": ops.backend_for(where),
    }
    print(", ".join(f"{name} {value}" for name, value in record.items()))
    record["adamw"] = report(
        "AdamW step, ns per element", optimizer_steps(elements, where), rounds, 1e9 / elements, where
    )
    record["transformer"] = report("training step, 10 M transformer, ms", training_steps(where), rounds, 1e3, where)
    if output:
        whole_text(output, json.dumps(record, indent=1) + "\n")
    return record


def optimizer_steps(elements: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """The sides of the first table: torch's fused AdamW, and ours."""
    sides: dict[str, Callable[[], Any]] = {FLOAT32: torch.optim.AdamW(matrices(elements, device), fused=True).step}
    for name, setting in SETTINGS.items():
        params = []
        for param in matrices(elements, device):
            stored = FixedPointTensor.quantize(param.detach(), f"fixed{setting.weights}", rounding="nearest")
            fixed, grad = nn.Parameter(stored), param.grad
            assert grad is not None
            fixed.grad = grad if setting.gradients is None else FixedPointGradient.of(grad, stored, setting.gradients)
            params.append(fixed)
        sides[name] = optim.AdamW(params, state_word_length=setting.state, rounding=setting.rounding).step
    return sides


def training_steps(device: torch.device) -> dict[str, Callable[[], Any]]:
    """The sides of the second table: forward, backward, clipping and the step."""
    ids = torch.randint(256, (8, 129), device=device)

    def side(setting: Setting | None) -> Callable[[], Any]:
        module = Transformer().to(device)
        if setting is None:
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(module.parameters(), fused=True)
        else:
            rounding, bits = setting.rounding, setting.gradients
            quantize_(module, f"fixed{setting.weights}", rounding=rounding, gradient_word_length=bits)
            optimizer = optim.AdamW(module.parameters(), state_word_length=setting.state, rounding=rounding)

        def step() -> None:
            optimizer.zero_grad()
            loss = cross_entropy(module(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()

        return step

    return {FLOAT32: side(None)} | {name: side(setting) for name, setting in SETTINGS.items()}


def report(
    title: str, sides: dict[str, Callable[[], Any]], rounds: int, scale: float, device: torch.device
) -> dict[str, dict[str, float]]:
    """Let the sides take turns, print the medians of their times, and return these, times ``scale``."""
    times_of = in_turns(sides, rounds, lambda side, _: seconds(side, device))
    base = statistics.median(times_of[FLOAT32])
    print(f"\n{title}")
    width = max(map(len, sides))
    result = {}
    for name, times in times_of.items():
        median = statistics.median(times)
        result[name] = {"median": median * scale, "ratio": median / base, "min": min(times) * scale}
        print(f"  {name:{width}} {median * scale:9.3f}   {median / base:.2f} x float32")
    return result
