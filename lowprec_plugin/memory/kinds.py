"""Which kinds of bytes are counted, and against what. Whatever says what a run holds counts so.

Counted is what stays between operations: weights (masters and an engine's own copy with them), optimizer state,
gradients when there are most, activations kept for the backward pass, where they are known, and buffers. Against it
stands float32 of the same model and optimizer: 4 bytes a number, of gradients and of state too. What exists only while
operations run, as copies of weights that they read or messages under way, is a part of the peak, and of no kind here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from lowprec_plugin.text.numbers import bytes_text, share
from lowprec_plugin.text.tables import columns

#: What is shown, in this order, and the kinds that it is the sum of.
SHOWN = {
    "weights and state": ("weights", "state"),
    "gradients": ("gradients",),
    "activations": ("activations",),
    "buffers": ("buffers",),
}
#: What all of them together are called.
TOTAL = "held"


class Kinds(NamedTuple):
    """Bytes by kind.

    Attributes:
        weights, state, gradients: of the parameters.
        activations: kept for the backward pass; 0 where nobody has counted them.
        buffers: the module's.
    """

    weights: int
    state: int
    gradients: int
    activations: int = 0
    buffers: int = 0

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(self)


class Part(NamedTuple):
    """One of :data:`SHOWN`, or all together, beside float32's."""

    name: str
    nbytes: int
    float32: int

    @property
    def share(self) -> float | None:
        """Of float32's bytes; ``None`` where float32 has none."""
        return self.nbytes / self.float32 if self.float32 else None

    @property
    def text(self) -> str:
        """The share as every table prints it."""
        return "-" if self.share is None else share(self.share)


def side_by_side(held: Kinds, float32: Kinds) -> dict[str, Part]:
    """What is shown of a run, by name: the parts of which there is something, then all together."""
    sums = {name: tuple(sum(getattr(of, kind) for kind in kinds) for of in (held, float32))
            for name, kinds in SHOWN.items()}  # fmt: skip
    parts = {name: Part(name, *both) for name, both in sums.items() if any(both)}
    return parts | {TOTAL: Part(TOTAL, held.total, float32.total)}


def float32_of(tensors: Iterable[Tensor]) -> int:
    """Bytes that ``tensors`` would take in float32; what is no float stays as it is."""
    return sum(4 * t.numel() if t.is_floating_point() else t.nbytes for t in tensors)


def as_table(held: Kinds, float32: Kinds) -> str:
    """A line for each part, in a unit that fits."""
    rows = [["", "held", "float32", "of float32"]]
    for name, part in side_by_side(held, float32).items():
        rows.append([name, bytes_text(part.nbytes), bytes_text(part.float32), part.text])
    return "\n".join(columns(rows, texts=1))
