"""The formulas of :mod:`lowprec_plugin.arithmetic.formulas` on the device: the same operations in the same order.

Each has the name and the arguments of its original there: float32 tiles, then the hyperparameters. Kernels are
compiled without fused multiply-add; division and square root are the correctly rounded ones.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sgd(p, g, sign, l2, lr):
    """:func:`lowprec_plugin.arithmetic.formulas.sgd`."""
    g = g * sign + p * l2
    return (p - g * lr,)


@triton.jit
def momentum(p, g, m, sign, l2, lr, mu, fresh, direct, through):
    """:func:`lowprec_plugin.arithmetic.formulas.momentum`."""
    g = g * sign + p * l2
    m = m * mu + g * fresh
    return p - (g * direct + m * through) * lr, m


@triton.jit
def adam(p, g, m, r, sign, l2, step_size, decay, one_minus_beta1, beta2, one_minus_beta2, correction, eps):
    """:func:`lowprec_plugin.arithmetic.formulas.adam`."""
    g = g * sign + p * l2
    m = m + (g - m) * one_minus_beta1
    r = tl.sqrt_rn((r * r) * beta2 + (g * g) * one_minus_beta2)
    return p - (tl.div_rn(m, r * correction + eps) * step_size + p * decay), m, r


@triton.jit
def lion(p, g, m, sign, lr, decay, one_minus_beta1, one_minus_beta2):
    """:func:`lowprec_plugin.arithmetic.formulas.lion`."""
    g = g * sign
    blend = m + (g - m) * one_minus_beta1
    direction = tl.where(blend > 0, 1.0, tl.where(blend < 0, -1.0, blend))  # a NaN stays one
    return p - (direction * lr + p * decay), m + (g - m) * one_minus_beta2


@triton.jit
def rmsprop(p, g, r, sign, l2, lr, alpha, one_minus_alpha, eps):
    """:func:`lowprec_plugin.arithmetic.formulas.rmsprop`."""
    g = g * sign + p * l2
    r = tl.sqrt_rn((r * r) * alpha + (g * g) * one_minus_alpha)
    return p - tl.div_rn(g, r + eps) * lr, r
