"""The optimizers' formulas, stated once, in float32, and all that there is to know of each.

A formula takes the parameter, its gradient and its state as float32 tensors and returns their new values; what
surrounds it (:mod:`.ops`) reads those from codes and rounds them back, once each. Native and Triton kernels
evaluate the same operations in the same order, without fused multiply-add, and so end in the same codes.

The keyword arguments of a formula are its hyperparameters, floats that are rounded to float32 on use.
``lr * weight_decay`` and the like are multiplied out in float64 beforehand, by :mod:`lowprec_plugin.optim`.

:data:`ALGORITHMS` is the table of them. The fused step, both kinds of kernels, the plan and the tests read it;
docs/extending.md says what one more takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lowprec_plugin.arithmetic.random_bits import ROLES

Hyper = Sequence[float]
#: The most hyperparameters and states that kernels have room for.
HYPERS = 10
STATES = len(ROLES) - 1


@dataclass(frozen=True, eq=False)
class Algorithm:
    """An elementwise update of a parameter and its state, declared once.

    Attributes:
        number: what the native library knows it by.
        law: the formula, ``law(p, g, *states, **hyper)``, which returns the new parameter and states. Kernels have
            formulas of the same name.
        states: the names of its states, those of torch.optim, in the order of the law's arguments.
        squared: which of them are sums or means of squares. Of these the law takes and returns the roots.
        counts_steps: whether the optimizer it is taken from also keeps a count of every parameter's steps.

    Raises:
        ValueError: if the law takes another number of tensors, or more than kernels have room for.
    """

    number: int
    law: Callable[..., tuple[Tensor, ...]]
    states: tuple[str, ...] = ()
    squared: tuple[str, ...] = ()
    counts_steps: bool = False

    def __post_init__(self) -> None:
        tensors = self._arguments(inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if len(tensors) != 2 + len(self.states) or not set(self.squared) <= set(self.states):
            raise ValueError(
                f"{self} takes ({', '.join(tensors)}), and its states are {self.states}, of squares {self.squared}: "
                "declare one state for each argument after the parameter and its gradient"
            )
        if len(self.states) > STATES or len(self.hypers) > HYPERS:
            raise ValueError(
                f"{self} has {len(self.states)} states and {len(self.hypers)} hyperparameters: kernels have room for "
                f"{STATES} and {HYPERS}"
            )

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """The law's."""
        return self.law.__name__

    @cached_property
    def hypers(self) -> tuple[str, ...]:
        """The names of its hyperparameters, in the order in which kernels take them."""
        return self._arguments(inspect.Parameter.KEYWORD_ONLY)

    def hyper(self, **values: float) -> Hyper:
        """The hyperparameters as kernels take them.

        Raises:
            ValueError: if one is missing, or unknown.
        """
        if values.keys() != set(self.hypers):
            raise ValueError(f"{self} takes the hyperparameters {', '.join(self.hypers)}, not {', '.join(values)}")
        return tuple(map(values.__getitem__, self.hypers))

    def apply(self, p: Tensor, g: Tensor, states: Sequence[Tensor], hyper: Hyper) -> tuple[Tensor, ...]:
        """The parameter and its states after the update."""
        return self.law(p, g, *states, **dict(zip(self.hypers, hyper, strict=True)))

    def _arguments(self, kind: object) -> tuple[str, ...]:
        return tuple(each.name for each in inspect.signature(self.law).parameters.values() if each.kind is kind)


def square_root(x: Tensor) -> Tensor:
    """The correctly rounded float32 root: torch's own, where it calls a vector library, may be off by one bit."""
    return torch.sqrt(x.double()).float()


def sgd(p: Tensor, g: Tensor, *, sign: float, l2: float, lr: float) -> tuple[Tensor, ...]:
    """``p - (lr g + lr l2 p)``: ``sign`` is -1 to maximize, ``l2`` the weight decay."""
    g = g * sign + p * l2
    return (p - g * lr,)


def momentum(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    *,
    sign: float,
    l2: float,
    lr: float,
    mu: float,
    fresh: float,
    direct: float,
    through: float,
) -> tuple[Tensor, ...]:
    """torch.optim.SGD with momentum.

    The buffer becomes ``mu m + fresh g``, where ``fresh`` is ``1 - dampening``, or 1 in the first step; the parameter
    moves by ``-lr (direct g + through m)``: ``(0, 1)``, or ``(1, mu)`` for Nesterov's.
    """
    g = g * sign + p * l2
    m = m * mu + g * fresh
    return p - (g * direct + m * through) * lr, m


def adam(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    r: Tensor,
    *,
    sign: float,
    l2: float,
    step_size: float,
    decay: float,
    one_minus_beta1: float,
    beta2: float,
    one_minus_beta2: float,
    correction: float,
    eps: float,
) -> tuple[Tensor, ...]:
    """torch.optim.Adam and AdamW, with the second moment as its square root ``r``.

    ``step_size = lr / (1 - beta1**t)``, ``correction = 1 / sqrt(1 - beta2**t)`` and, for AdamW,
    ``decay = lr * weight_decay`` and ``l2 = 0``. ::

        m' = m + (1 - beta1) (g - m)
        r' = sqrt(beta2 r**2 + (1 - beta2) g**2)
        p' = p - (step_size m' / (r' correction + eps) + decay p)
    """
    g = g * sign + p * l2
    m = m + (g - m) * one_minus_beta1
    r = square_root((r * r) * beta2 + (g * g) * one_minus_beta2)
    return p - ((m / (r * correction + eps)) * step_size + p * decay), m, r


def lion(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    *,
    sign: float,
    lr: float,
    decay: float,
    one_minus_beta1: float,
    one_minus_beta2: float,
) -> tuple[Tensor, ...]:
    """Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2).

    ``decay = lr * weight_decay``.
    """
    g = g * sign
    direction = torch.sign(m + (g - m) * one_minus_beta1)
    return p - (direction * lr + p * decay), m + (g - m) * one_minus_beta2


def rmsprop(
    p: Tensor,
    g: Tensor,
    r: Tensor,
    *,
    sign: float,
    l2: float,
    lr: float,
    alpha: float,
    one_minus_alpha: float,
    eps: float,
) -> tuple[Tensor, ...]:
    """torch.optim.RMSprop without momentum, not centered, with the mean of squares as its square root ``r``. ::

    r' = sqrt(alpha r**2 + (1 - alpha) g**2)
    p' = p - lr g / (r' + eps)
    """
    g = g * sign + p * l2
    r = square_root((r * r) * alpha + (g * g) * one_minus_alpha)
    return p - (g / (r + eps)) * lr, r


SGD = Algorithm(0, sgd)
MOMENTUM = Algorithm(1, momentum, ("momentum_buffer",))
ADAM = Algorithm(2, adam, ("exp_avg", "exp_avg_sq"), squared=("exp_avg_sq",), counts_steps=True)
LION = Algorithm(3, lion, ("exp_avg",))
RMSPROP = Algorithm(4, rmsprop, ("square_avg",), squared=("square_avg",), counts_steps=True)
#: Every fused update.
ALGORITHMS = (SGD, MOMENTUM, ADAM, LION, RMSPROP)
