"""Bytes held by kind, beside what float32 and bf16 mixed precision would hold."""

from __future__ import annotations

from typing import NamedTuple

from lowprec_plugin.activations.packed import KeptBytes
from lowprec_plugin.memory import MemoryReport


class Kinds(NamedTuple):
    """Bytes by kind.

    Attributes:
        weights, state, gradients: of the parameters.
        activations: kept for the backward pass; 0 where they are not stored narrow, for then nobody counts them.
    """

    weights: int
    state: int
    gradients: int
    activations: int = 0

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(self)


class Held(NamedTuple):
    """What one process holds, and what it would hold of the same numbers.

    Attributes:
        ours: as they are stored.
        float32: in float32.
        bf16_mixed: as autocast does: weights, state and gradients in float32, activations in bfloat16. Copies that
            operations make of weights while they run are in none of the three.
    """

    ours: Kinds
    float32: Kinds
    bf16_mixed: Kinds


def held(report: MemoryReport, gradients: tuple[int, int], kept: KeptBytes | None = None) -> Held:
    """What is held of each kind.

    Args:
        report: of weights and state, after a step.
        gradients: bytes of gradients while there were some, and what they would take in float32.
        kept: activations kept in codes for one backward pass, with those left in float beside them; or ``None``.
    """
    kept = kept or KeptBytes()
    ours = Kinds(report.weights, report.state, gradients[0], kept.stored + kept.left)
    floats = (report.float32_weights, report.float32_state, gradients[1])
    return Held(ours, Kinds(*floats, 4 * kept.elements + kept.left), Kinds(*floats, 2 * kept.elements + kept.left))
