"""What a step's memory is for, over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lowprec_plugin.text.areas import areas, standing_alone
from lowprec_plugin.text.files import whole_text

#: What memory is for. Activations are what a forward pass has made that is there when the backward pass begins, and
#: temporaries all else, what activation checkpointing computes again among it.
KINDS = ("weights", "buffers", "state", "gradients", "activations", "temporaries")


class Moment(NamedTuple):
    """Bytes after one event: a storage was made, resized or freed.

    Attributes:
        phase: ``"forward"``, ``"backward"``, or ``"step"``: what comes after a backward pass without gradients.
    """

    phase: str
    weights: int
    buffers: int
    state: int
    gradients: int
    activations: int
    temporaries: int

    @property
    def by_kind(self) -> dict[str, int]:
        """Bytes by the names in ``KINDS``."""
        return dict(zip(KINDS, self[1:], strict=True))

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(self[1:])


@dataclass(frozen=True)
class Timeline:
    """The memory of one step.

    Attributes:
        moments: in order; the first is what was held before.
    """

    moments: tuple[Moment, ...]

    @property
    def peak(self) -> Moment:
        """The first moment at which most was held."""
        return max(self.moments, key=lambda moment: moment.total)

    def peak_of(self, phase: str) -> Moment | None:
        """The same of one phase; ``None`` if there was none."""
        return max((each for each in self.moments if each.phase == phase), key=lambda each: each.total, default=None)

    @property
    def activations(self) -> int:
        """The most that was held for a backward pass: what :func:`lowprec_plugin.plan.plan` takes as activations."""
        return max(each.activations for each in self.moments)

    @property
    def starts(self) -> list[tuple[int, str]]:
        """Where each phase begins: the index of its first moment, and its name."""
        phases = [each.phase for each in self.moments]
        return [(at, phase) for at, phase in enumerate(phases) if at == 0 or phase != phases[at - 1]]

    def chart(self, title: str = "memory of a step") -> str:
        """A picture as SVG, for a page that has colours for the kinds: memory by kind from left to right."""
        return areas(title, self._described(), KINDS, [moment[1:] for moment in self.moments], self.starts)

    def save(self, path: str | Path, title: str = "memory of a step") -> None:
        """Write the picture to a file of its own, with its colours and what they stand for."""
        whole_text(path, standing_alone(self.chart(title), KINDS))

    def _described(self) -> str:
        peak = self.peak
        kinds = ", ".join(f"{kind} {size:,}" for kind, size in peak.by_kind.items() if size)
        where = "optimizer's step" if peak.phase == "step" else f"{peak.phase} pass"
        return f"At most {peak.total:,} bytes, in the {where}: {kinds}."


def timeline_of(events: Sequence[tuple[str, str, int]], before: int = 0) -> Timeline:
    """The timeline of events: the phase, a kind, and by how many bytes it grew.

    Args:
        before: so many of them make up the first moment.
    """
    held = dict.fromkeys(KINDS, 0)
    for _, kind, change in events[:before]:
        held[kind] += change
    moments = [Moment("forward", *held.values())]
    for phase, kind, change in events[before:]:
        held[kind] += change
        moments.append(Moment(phase, *held.values()))
    return Timeline(tuple(moments))
