"""Time a training step of emulated arithmetic beside float32's, and beside QPyTorch's where it is installed.

The network is the paper's for MNIST, on a batch of 100 images of noise: what the numbers are does not change the time.
All sides but float32's round the same tensors: the images, the outputs of the four layers and the errors that come
back to them, weights and momentum.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowprec_plugin import optim
from lowprec_plugin.activations.emulation import Emulation, emulate
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.devices import device_name
from lowprec_plugin.arithmetic.native import library as native
from lowprec_plugin.bench.run import report
from lowprec_plugin.bench.timing import FLOAT32
from lowprec_plugin.formats import FixedPointFormat, check_integer
from lowprec_plugin.tasks import CNN
from lowprec_plugin.text.files import whole_text
from lowprec_plugin.version import __version__

WEIGHTS, ACTIVATIONS, ERRORS = (FixedPointFormat.parse(format) for format in ("<2,14>", "<6,10>", "<2,14>"))
OPTIONS: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}

Batch = tuple[Tensor, Tensor]


def run_emulation(rounds: int = 50, batch_size: int = 100, threads: int = 2, output: str = "") -> dict[str, Any]:
    """Print and return a table of times: whole training steps, forward, backward and update.

    Args:
        rounds: turns of each side; medians are reported.
        batch_size: images in a step.
        threads: of torch and of the kernels.
        output: a JSON file to write as well.

    Raises:
        OptionError: for a number below 1.
    """
    for name, value in (("rounds", rounds), ("batch_size", batch_size), ("threads", threads)):
        check_integer(value, name, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        batch = torch.rand(batch_size, 1, 28, 28), torch.randint(10, (batch_size,))
        sides = {FLOAT32: _float32(batch)}
        for rounding in ops.ROUNDINGS:
            for accumulate in ("float32", "exact"):
                sides[f"{rounding}, sums {accumulate}"] = _emulated(batch, rounding, accumulate)
        missing = ""
        for rounding in ops.ROUNDINGS:
            try:
                sides[f"QPyTorch, {rounding}"] = _qpytorch(batch, rounding)
            except ImportError as error:
                missing = f"QPyTorch is not measured: {error}"
        record: dict[str, Any] = {
            "version": __version__, "torch": torch.__version__, "device": device_name(torch.device("cpu")),
            "threads": threads, "backend": ops.backend_for(torch.device("cpu")), "batch_size": batch_size,
            "instruction_set": native.instruction_set() if native.available()[0] else None, "rounds": rounds,
            "weights": str(WEIGHTS), "activations": str(ACTIVATIONS), "errors": str(ERRORS),
        }  # fmt: skip
        print(", ".join(f"{name} {value}" for name, value in record.items()))
        title = "training step, the paper's MNIST CNN, ms"
        record["steps"] = report(title, sides, rounds, 1e3, torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
    if missing:
        record["missing"] = missing
        print(missing)
    if output:
        whole_text(output, json.dumps(record, indent=1) + "\n")
    return record


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    optimizer.zero_grad()
    cross_entropy(network(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _float32(batch: Batch) -> Callable[[], Any]:
    network = CNN()
    return partial(_step, network, torch.optim.SGD(network.parameters(), **OPTIONS, fused=True), batch)


def _emulated(batch: Batch, rounding: Any, accumulate: Any) -> Callable[[], Any]:
    network = CNN()
    optim.quantize_(network, WEIGHTS, rounding=rounding)
    optimizer = optim.SGD(network.parameters(), **OPTIONS, rounding=rounding)
    emulation = Emulation(str(ACTIVATIONS), str(ERRORS), rounding=rounding, accumulate=accumulate)
    steps = iter(range(2**62))

    def step() -> None:
        with emulate(network, emulation, step=next(steps)):
            _step(network, optimizer, batch)

    return step


def _qpytorch(batch: Batch, rounding: str) -> Callable[[], Any]:
    """The same in QPyTorch, which compiles its kernels when it is imported."""
    from qtorch import FixedPoint
    from qtorch.optim import OptimLP
    from qtorch.quant import Quantizer, quantizer

    def number(format: FixedPointFormat) -> Any:
        return FixedPoint(format.word_length, -format.static_exponent)

    rounds = partial(
        Quantizer, number(ACTIVATIONS), number(ERRORS), forward_rounding=rounding, backward_rounding=rounding
    )
    layers: list[nn.Module] = [rounds()]
    for layer in CNN():
        layers += [layer, rounds()] if isinstance(layer, (nn.Conv2d, nn.Linear)) else [layer]
    network = nn.Sequential(*layers)
    weights = quantizer(forward_number=number(WEIGHTS), forward_rounding=rounding)
    optimizer = OptimLP(torch.optim.SGD(network.parameters(), **OPTIONS), weight_quant=weights, momentum_quant=weights)
    return partial(_step, network, optimizer, batch)
