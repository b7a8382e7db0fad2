"""One small training, in float32, in float32 with the noise of rounding, and in fixed-point.

The noise is made here, in a few lines of its own, and not by the package: it is what the package is measured by.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowprec_plugin import optim

STEPS = 40
BLOCK = 256


class Net(nn.Sequential):
    """Two layers with biases and a norm between; inputs of size 1 to 0.003, so that gradients within a block differ."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(24, 48), nn.LayerNorm(48), nn.GELU(), nn.Linear(48, 8))


@cache
class Data:
    """The same batches for every run: labels of a random network."""

    def __init__(self, size: int = 64) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(STEPS, size, 24, generator=generator) * torch.logspace(0, -2.5, 24)
        teacher = torch.randn(24, 8, generator=generator) * torch.logspace(0, 2, 24)[:, None]
        self.y = (self.x @ teacher).argmax(-1)


Closure = Callable[[], Tensor]


def plainly(optimizer: Any, closure: Closure) -> Tensor:
    """As most are used: ``step`` after ``backward``."""
    loss = closure()
    optimizer.step()
    return loss


def with_closure(optimizer: Any, closure: Closure) -> Tensor:
    """``step`` calls the closure as often as it likes."""
    return optimizer.step(closure)  # type: ignore[no-any-return]


def with_gradients_and_closure(optimizer: Any, closure: Closure) -> Tensor:
    """``step`` finds gradients, and calls the closure for others."""
    loss = closure()
    optimizer.step(closure)
    return loss


def with_loss(optimizer: Any, closure: Closure) -> Tensor:
    """``step`` asks what the loss was."""
    loss = closure()
    optimizer.step(lambda: loss.detach())
    return loss


def in_two_calls(optimizer: Any, closure: Closure) -> Tensor:
    """The user climbs and steps himself, and never calls ``step``."""
    loss = closure()
    optimizer.first_step(zero_grad=True)
    closure()
    optimizer.second_step(zero_grad=True)
    return loss


def with_outputs(optimizer: Any, closure: Closure) -> Tensor:
    """The closure returns outputs beside the loss."""
    optimizer.update_rho_t()
    _, loss = optimizer.step(torch.enable_grad()(lambda: (None, closure())))
    return loss  # type: ignore[no-any-return]


def in_backward(optimizer: Any, closure: Closure) -> Tensor:
    """Hooks of gradients update; there is no ``step``."""
    return closure()


@dataclass
class Way:
    """How an optimizer is used."""

    step: Callable[[Any, Closure], Tensor] = plainly
    backward: Callable[[Any, Tensor], None] = lambda optimizer, loss: loss.backward()
    after: Callable[[Any], None] = lambda optimizer: None  # what a user calls before evaluation
    one_batch: bool = False  # again and again: a line search compares losses
    state_bits: int | None = None  # at least; fewer and the noise of rounding state leads elsewhere, in float32 too


class Training:
    """A new network, always the same, with its optimizer; :meth:`run` goes on for so many steps.

    ``noise``: in float32, round weights and state stochastically to so many bits after every step, from such a seed.
    """

    def __init__(
        self,
        make: Callable[[nn.Module], Any],
        way: Way,
        format: str | None = None,
        noise: tuple[int, int] | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.net, self.data, self.way = Net(), Data(), way
        self.steps = 0
        self.losses: list[float] = []
        self.bits, self.random = (0, None) if noise is None else (noise[0], torch.Generator().manual_seed(noise[1]))
        if format is not None:
            optim.quantize_(self.net, format)
        self.start = weights_of(self.net)
        if self.random is not None:
            add_noise(self.net, {}, self.bits, self.bits, self.random)
        self.optimizer = make(self.net)
        if format is not None:
            self.optimizer = optim.adopt(self.optimizer, optim.StepSettings(way.state_bits))
        torch.manual_seed(3)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.losses.append(float(self.way.step(self.optimizer, self._closure)))
            self.steps += 1
            if self.random is not None:
                state_bits = self.way.state_bits or self.bits
                add_noise(self.net, self.optimizer.state, self.bits, state_bits, self.random)

    def _closure(self) -> Tensor:
        self.optimizer.zero_grad()
        index = 0 if self.way.one_batch else self.steps % len(self.data.x)
        loss = F.cross_entropy(self.net(self.data.x[index]), self.data.y[index])
        self.way.backward(self.optimizer, loss)
        return loss

    def end(self) -> End:
        """What a user evaluates, and its loss over all batches that were seen."""
        self.way.after(self.optimizer)
        self.optimizer.zero_grad()
        with torch.no_grad():
            seen = slice(0, 1) if self.way.one_batch else slice(None)
            x, y = self.data.x[seen].flatten(0, 1), self.data.y[seen].flatten()
            return End(weights_of(self.net), float(F.cross_entropy(self.net(x), y)))


@dataclass
class End:
    weights: Tensor
    loss: float


def weights_of(net: nn.Module) -> Tensor:
    return torch.cat([(param.detach() + 0).flatten() for param in net.parameters()])


def add_noise(net: nn.Module, states: Any, bits: int, state_bits: int, random: torch.Generator) -> None:
    """Round the weights, and the state that has a number for each, as they would be if they were stored so."""
    for param in net.parameters():
        param.data.copy_(rounded(param.data, bits, random))
        for value in _tensors(states.get(param, {})):
            if value.shape == param.shape and value.is_floating_point():
                some = value.detach().float()
                squared = bool((some >= 0).all())  # of a mean of squares the root is stored
                new = rounded(some.sqrt() if squared else some, state_bits, random)
                new = new.square() if squared else new
                if value.dtype in (torch.bfloat16, torch.float16):  # what it rounds itself may round the other way
                    new = new * (1 + torch.finfo(value.dtype).eps * (torch.rand(new.shape, generator=random) - 0.5))
                value.detach().copy_(new)


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple | deque):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)


def rounded(x: Tensor, bits: int, random: torch.Generator) -> Tensor:
    """``x`` on the grid of ``bits``-bit codes, each row in blocks with a radix point of their own, stochastically."""
    rows = x.reshape(len(x), -1) if x.ndim > 1 else x.reshape(1, -1)
    parts = []
    for block in rows.split(BLOCK, 1):
        largest = block.abs().amax(1, keepdim=True).clamp_min(1e-30)
        step = torch.exp2(torch.floor(torch.log2(largest)) + 2 - bits)
        parts.append(torch.floor(block / step + torch.rand(block.shape, generator=random)) * step)
    return torch.cat(parts, 1).reshape(x.shape)
