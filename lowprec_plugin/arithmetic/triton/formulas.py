"""The formulas of :mod:`lowprec_plugin.arithmetic.formulas` on the device: the same operations in the same order.

Each takes float32 tiles and a pointer to the hyperparameters, float32 in the order of the formula's ``hyper``. Kernels
are compiled without fused multiply-add; division and square root are the correctly rounded ones.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sgd(p, g, hyper):
    """:func:`lowprec_plugin.arithmetic.formulas.sgd`."""
    sign, l2, lr = tl.load(hyper), tl.load(hyper + 1), tl.load(hyper + 2)
    g = g * sign + p * l2
    return p - g * lr


@triton.jit
def momentum(p, g, m, hyper):
    """:func:`lowprec_plugin.arithmetic.formulas.momentum`."""
    sign, l2, lr, mu = tl.load(hyper), tl.load(hyper + 1), tl.load(hyper + 2), tl.load(hyper + 3)
    fresh, a, b = tl.load(hyper + 4), tl.load(hyper + 5), tl.load(hyper + 6)
    g = g * sign + p * l2
    m = m * mu + g * fresh
    return p - (g * a + m * b) * lr, m


@triton.jit
def adam(p, g, m, r, hyper):
    """:func:`lowprec_plugin.arithmetic.formulas.adam`."""
    sign, l2, step_size, decay = tl.load(hyper), tl.load(hyper + 1), tl.load(hyper + 2), tl.load(hyper + 3)
    one_minus_beta1, beta2, one_minus_beta2 = tl.load(hyper + 4), tl.load(hyper + 5), tl.load(hyper + 6)
    correction, eps = tl.load(hyper + 7), tl.load(hyper + 8)
    g = g * sign + p * l2
    m = m + (g - m) * one_minus_beta1
    r = tl.sqrt_rn((r * r) * beta2 + (g * g) * one_minus_beta2)
    return p - (tl.div_rn(m, r * correction + eps) * step_size + p * decay), m, r


@triton.jit
def lion(p, g, m, hyper):
    """:func:`lowprec_plugin.arithmetic.formulas.lion`."""
    sign, lr, decay = tl.load(hyper), tl.load(hyper + 1), tl.load(hyper + 2)
    one_minus_beta1, one_minus_beta2 = tl.load(hyper + 3), tl.load(hyper + 4)
    g = g * sign
    blend = m + (g - m) * one_minus_beta1
    direction = tl.where(blend > 0, 1.0, tl.where(blend < 0, -1.0, blend))  # a NaN stays one
    return p - (direction * lr + p * decay), m + (g - m) * one_minus_beta2
