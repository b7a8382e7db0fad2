"""The optimizers' formulas, stated once, in float32.

Each takes the parameter, its gradient and its state as float32 tensors and returns their new values; what surrounds
it (:mod:`.ops`) reads those from codes and rounds them back, once each. Native and Triton kernels
evaluate the same operations in the same order, without fused multiply-add, and so end in the same codes.

The hyperparameters of one parameter are a tuple of at most ``HYPERS`` floats, each rounded to float32 on use.
``lr * weight_decay`` and the like are multiplied out in float64 beforehand, by :mod:`lowprec_plugin.optim`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from lowprec_plugin.arithmetic.update_counts import UpdateCounts

Hyper = Sequence[float]
HYPERS = 10


class Algorithm(IntEnum):
    """The fused updates, by the numbers that kernels know them by."""

    SGD = 0
    MOMENTUM = 1
    ADAM = 2
    LION = 3

    @property
    def states(self) -> int:
        """Tensors of state per parameter."""
        return (0, 1, 2, 1)[self]


class Updated(NamedTuple):
    """What came of a step over many parameters.

    Attributes:
        saturated: numbers that were out of range, of parameters and state.
        refused: the index of the first parameter in which a NaN came up, or ``None``.
        counts: one per parameter, if they were wanted; else empty.
    """

    saturated: int
    refused: int | None
    counts: list[UpdateCounts]


def square_root(x: Tensor) -> Tensor:
    """The correctly rounded float32 root: torch's own, where it calls a vector library, may be off by one bit."""
    return torch.sqrt(x.double()).float()


def sgd(p: Tensor, g: Tensor, hyper: Hyper) -> tuple[Tensor, ...]:
    """``p - (lr g + lr wd p)``.

    ``hyper = (sign, l2, lr)``: ``sign`` is -1 to maximize, ``l2`` the weight decay.
    """
    sign, l2, lr = hyper
    g = g * sign + p * l2
    return (p - g * lr,)


def momentum(p: Tensor, g: Tensor, m: Tensor, hyper: Hyper) -> tuple[Tensor, ...]:
    """torch.optim.SGD with momentum.

    ``hyper = (sign, l2, lr, mu, fresh, a, b)``. The buffer becomes ``mu m + fresh g``, where ``fresh`` is
    ``1 - dampening``, or 1 in the first step; the parameter moves by ``-lr (a g + b m)``: ``(0, 1)``, or ``(1, mu)``
    for Nesterov's.
    """
    sign, l2, lr, mu, fresh, a, b = hyper
    g = g * sign + p * l2
    m = m * mu + g * fresh
    return p - (g * a + m * b) * lr, m


def adam(p: Tensor, g: Tensor, m: Tensor, r: Tensor, hyper: Hyper) -> tuple[Tensor, ...]:
    """torch.optim.Adam and AdamW, with the second moment as its square root ``r``.

    ``hyper = (sign, l2, step_size, decay, 1 - beta1, beta2, 1 - beta2, 1 / sqrt(1 - beta2**t), eps)`` with
    ``step_size = lr / (1 - beta1**t)`` and, for AdamW, ``decay = lr * weight_decay`` and ``l2 = 0``. ::

        m' = m + (1 - beta1) (g - m)
        r' = sqrt(beta2 r**2 + (1 - beta2) g**2)
        p' = p - (step_size m' / (r' / sqrt(1 - beta2**t) + eps) + decay p)
    """
    sign, l2, step_size, decay, one_minus_beta1, beta2, one_minus_beta2, correction, eps = hyper
    g = g * sign + p * l2
    m = m + (g - m) * one_minus_beta1
    r = square_root((r * r) * beta2 + (g * g) * one_minus_beta2)
    return p - ((m / (r * correction + eps)) * step_size + p * decay), m, r


def lion(p: Tensor, g: Tensor, m: Tensor, hyper: Hyper) -> tuple[Tensor, ...]:
    """Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2).

    ``hyper = (sign, lr, decay, 1 - beta1, 1 - beta2)`` with ``decay = lr * weight_decay``.
    """
    sign, lr, decay, one_minus_beta1, one_minus_beta2 = hyper
    g = g * sign
    direction = torch.sign(m + (g - m) * one_minus_beta1)
    return p - (direction * lr + p * decay), m + (g - m) * one_minus_beta2


FORMULAS: dict[Algorithm, Callable[..., tuple[Tensor, ...]]] = {
    Algorithm.SGD: sgd,
    Algorithm.MOMENTUM: momentum,
    Algorithm.ADAM: adam,
    Algorithm.LION: lion,
}
