"""Networks that tests export, what emulation gives for them, and compilers."""

from __future__ import annotations

import math
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lowprec_plugin import Emulation, FixedPointFormat, emulate, optim
from lowprec_plugin.tasks import MLP, DigitsDataModule

ACTIVATIONS = "<8,8>"


def initial() -> nn.Module:
    """What an import path names."""
    return MLP(hidden=(32,))


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, held-out images and labels."""
    data = DigitsDataModule()
    data.setup("fit")
    return *data.train.tensors, *data.test.tensors  # type: ignore[return-value]


@cache
def trained(weights: str) -> nn.Module:
    """The digits' MLP, trained in fixed-point. Not to be changed."""
    torch.manual_seed(0)
    net = initial()
    optim.quantize_(net, weights)
    optimizer = optim.AdamW(net.parameters(), lr=0.01)
    images, labels, _, _ = digits()
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.eval()


def emulated(net: nn.Module, x: Tensor, activations: str | dict[str, str] = ACTIVATIONS) -> Tensor:
    """What the network puts out in exact sums, rounded to nearest."""
    settings = Emulation(activations, None, rounding="nearest", accumulate="exact")
    with torch.no_grad(), emulate(net, settings, training=False):
        return net(x)


def as_codes(x: Tensor, format: str) -> Tensor:
    """Numbers of a format as the integers they are; each must be one."""
    codes = x.double() * 2.0 ** -FixedPointFormat.parse(format).static_exponent
    assert torch.equal(codes, codes.round()), "not on the grid"
    return codes.to(torch.int32)


def rounded_codes(x: Tensor, format: str) -> Tensor:
    """``x`` rounded to nearest by NumPy, which sends ties to even, and saturated."""
    parsed = FixedPointFormat.parse(format)
    codes = np.rint(x.double().numpy() * 2.0**-parsed.static_exponent)
    return torch.tensor(np.clip(codes, parsed.min_code, parsed.max_code).astype(np.int32))


def compiled(command: list[str], folder: Path, program: str, source: str) -> Path:
    """The path of the program that a compiler makes of ``source``."""
    (folder / source).write_text(program)
    binary = folder / "program"
    done = subprocess.run(
        [*command, source, "-o", str(binary)], cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return binary


def run(binary: Path, given: Tensor, shape: tuple[int, ...], dtype: type = np.int32) -> Tensor:
    """What the program answers to the bytes of ``given``."""
    done = subprocess.run([str(binary)], input=given.contiguous().numpy().tobytes(), capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr.decode()
    answer = np.frombuffer(done.stdout, dtype)
    assert answer.size == math.prod(shape)
    return torch.tensor(answer.reshape(shape))
