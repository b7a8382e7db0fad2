"""Ways to store a model: this package's, float32, bfloat16, and two published ones.

The published ones, in bytes of weights and state per parameter under Adam: FlashOptim (arXiv 2602.23349), 5.1, of which
bfloat16 weights and their 8-bit correction take 3; torchao's 8-bit Adam with stochastic rounding to bfloat16, 4.03, of
which the weights take 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from lowprec_plugin.arithmetic.formulas import ADAM, LION, MOMENTUM, RMSPROP, SGD, Algorithm
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.optim.gradients import GradientWordLength, stays_float
from lowprec_plugin.optim.options import PluginOptions
from lowprec_plugin.optim.state import format_of_state
from lowprec_plugin.plan.amounts import Shape, Storage
from lowprec_plugin.plan.inventory import Parameter

#: Tensors of a parameter's size that the float step makes: Adam's of the root of a mean of squares, and a quotient.
COPIES = {ADAM: 2, RMSPROP: 1, LION: 1, SGD: 0, MOMENTUM: 0}
#: Bytes of the float32 scalar that counts a parameter's steps.
STEP = 4


def fixed_point(
    options: PluginOptions, algorithm: Algorithm, itemsize: int, gradients: GradientWordLength | None = None
) -> Storage:
    """This package's.

    Args:
        options: formats of the weights, of state and of gradients between GPUs.
        itemsize: bytes of a number of the compute dtype.
        gradients: bits of gradients in codes; ``"release"``: each is used up at once; ``None``: floats.
    """
    format = options.format
    formats = [format_of_state(format, options, name) for name in algorithm.states]

    def kept_itemsize(param: Parameter) -> int:
        # The plugin casts what is kept in float only where it computes in another dtype than float32.
        return param.itemsize if itemsize == 4 else itemsize

    def weights(param: Parameter, shape: Shape) -> int:
        return _numel(shape) * kept_itemsize(param) if param.kept else format.nbytes(shape)

    def state(param: Parameter, shape: Shape) -> int:
        if param.kept:
            return _float_state(algorithm, _numel(shape), kept_itemsize(param))
        return sum(each.nbytes(shape) for each in formats) + STEP

    def gradient(param: Parameter) -> int:
        return kept_itemsize(param) if param.kept else itemsize

    def coded(param: Parameter, shape: Shape) -> int | None:
        if gradients is None or param.kept or stays_float(param.shape, gradients):
            return None
        return 0 if gradients == "release" else FixedPointFormat(gradients, block_size=format.block_size).nbytes(shape)

    def copies(params: Sequence[Parameter], gathered: bool) -> int:
        return max((itemsize * param.elements for param in params if not param.kept), default=0)

    update = _update(algorithm)
    bits = f"{format.word_length}"
    if options.state_word_length is not None:
        bits += f"/{options.state_word_length}"
    if gradients is not None:
        bits += ", gradients released" if gradients == "release" else f", {gradients}-bit gradients"
    return Storage(
        f"lowprec {bits}", "this package's formats", weights, state, gradient, itemsize, options.comm_bits,
        options.comm_error_feedback, gathered=weights, copies=copies, coded=coded,
        update=lambda params: update([param for param in params if param.kept]),
    )  # fmt: skip


def float32(algorithm: Algorithm) -> Storage:
    """Everything in float32."""
    return Storage(
        "float32", "4 bytes a number", lambda param, shape: 4 * _numel(shape),
        lambda param, shape: _float_state(algorithm, _numel(shape), 4),
        gradient=lambda param: 4, sent=4, word_length=None, feedback=False, update=_update(algorithm),
        gathered=lambda param, shape: 4 * _numel(shape), copies=lambda params, gathered: 0,
    )  # fmt: skip


def bf16_mixed(algorithm: Algorithm) -> Storage:
    """Float32 with bfloat16 copies of the matrices: autocast's, or FSDP2's gathered weights."""

    def casts(params: Sequence[Parameter], gathered: bool) -> int:
        return 0 if gathered else sum(2 * param.elements for param in params if len(param.shape) > 1)

    return Storage(
        "bf16 mixed", "float32 weights and state; matrices cast to bfloat16 for each step",
        lambda param, shape: 4 * _numel(shape), lambda param, shape: _float_state(algorithm, _numel(shape), 4),
        gradient=lambda param: 4, sent=4, word_length=None, feedback=False, update=_update(algorithm),
        gathered=lambda param, shape: 2 * _numel(shape), copies=casts, casts=True,
    )  # fmt: skip


def bf16(algorithm: Algorithm, name: str, source: str, weights: float, state: float, released: bool = False) -> Storage:
    """Operations see bfloat16, and gradients are; a weight takes so many bytes, and its state so many."""

    def weight(param: Parameter, shape: Shape) -> float:
        return (weights if param.trainable else 2) * _numel(shape)

    return Storage(
        name, source, weight, lambda param, shape: state * _numel(shape), gradient=lambda param: 2, sent=2,
        word_length=None, feedback=False, gathered=lambda param, shape: 2 * _numel(shape),
        copies=lambda params, gathered: 0, update=_update(algorithm, 2),
        coded=lambda param, shape: 0 if released else None,
    )  # fmt: skip


def others(algorithm: Algorithm, release: bool) -> list[Storage]:
    """What to compare with. The published figures are of Adam, and given for it alone.

    Args:
        release: whether gradients can be used up in the backward pass.
    """
    found = [
        float32(algorithm),
        bf16_mixed(algorithm),
        bf16(algorithm, "bf16 + SR", "bfloat16 throughout (arXiv 2502.20566)", 2, 2 * len(algorithm.states)),
    ]
    if algorithm == ADAM:
        flash = "5.1 bytes of weights, correction and moments (arXiv 2602.23349)"
        published = [bf16(algorithm, "FlashOptim", flash, 3, 2.1)]
        if release:
            published.append(bf16(algorithm, "FlashOptim, released", f"{flash}, no gradients", 3, 2.1, released=True))
        published += [
            bf16(algorithm, "8-bit Adam", "4.03 bytes with bf16 stochastic rounding (torchao)", 2, 2.03),
        ]
        found += [replace(each, update=lambda params: 0) for each in published]  # their steps are fused
    return found


def _update(algorithm: Algorithm, itemsize: int = 4) -> Callable[[Sequence[Parameter]], int]:
    """What a step of torch.optim allocates, which goes from one parameter to the next."""
    copies = COPIES.get(algorithm, max(COPIES.values()))
    return lambda params: max((copies * itemsize * param.elements for param in params), default=0)


def _float_state(algorithm: Algorithm, elements: int, itemsize: int) -> int:
    """Bytes that torch.optim's own state takes."""
    return len(algorithm.states) * itemsize * elements + STEP * algorithm.counts_steps


def _numel(shape: Shape) -> int:
    return Parameter("", shape).elements
