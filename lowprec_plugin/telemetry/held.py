"""Bytes held by kind, beside what float32 and bf16 mixed precision would hold."""

from __future__ import annotations

from typing import NamedTuple

from lowprec_plugin.activations.packed import KeptBytes
from lowprec_plugin.memory import Kinds, MemoryReport


class Held(NamedTuple):
    """What one process holds, and what it would hold of the same numbers.

    Attributes:
        ours: as they are stored.
        float32: in float32.
        bf16_mixed: as autocast does: weights, state and gradients in float32, activations in bfloat16.

    :mod:`lowprec_plugin.memory.kinds` says what is counted.
    """

    ours: Kinds
    float32: Kinds
    bf16_mixed: Kinds


def held(report: MemoryReport, gradients: tuple[int, int], kept: KeptBytes | None = None) -> Held:
    """What is held of each kind.

    Args:
        report: of weights, state and buffers, after a step.
        gradients: bytes of gradients while there were some, and what they would take in float32.
        kept: activations kept in codes for one backward pass, with those left in float beside them; or ``None``.
    """
    kept = kept or KeptBytes()
    ours = Kinds(report.weights, report.state, gradients[0], kept.stored + kept.left, report.buffers)
    floats = (report.float32_weights, report.float32_state, gradients[1])

    def with_activations(itemsize: int) -> Kinds:
        return Kinds(*floats, itemsize * kept.elements + kept.left, report.float32_buffers)

    return Held(ours, with_activations(4), with_activations(2))
