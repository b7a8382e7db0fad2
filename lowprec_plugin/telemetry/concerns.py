"""What in the counts of an update should worry somebody, and the remedy, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from lowprec_plugin.counts import UpdateCounts
from lowprec_plugin.sharding import fixed_part
from lowprec_plugin.tensor import FixedPointTensor

#: See docs/monitor.md for what these were measured on.
SATURATED, LOST, NOISE = 0.01, 0.5, 1.0


class Concern(NamedTuple):
    """Something is wrong with a layer.

    Attributes:
        cause: ``"saturated"``, ``"lost"`` or ``"noise"``.
        layer: the parameter's name.
        said: what is wrong and what to do.
    """

    cause: str
    layer: str
    said: str


def concerns(module: nn.Module, counts: Mapping[str, UpdateCounts]) -> list[Concern]:
    """The worst layer of each cause, if that is bad enough.

    Args:
        counts: of one update, by the parameters' names in ``module``.
    """
    worst: dict[str, tuple[float, Concern]] = {}
    for name, param in module.named_parameters():
        part = fixed_part(param)
        if part is None or name not in counts:
            continue
        for excess, concern in _of_one(name, part, counts[name]):
            if excess > worst.get(concern.cause, (1.0, None))[0]:
                worst[concern.cause] = excess, concern
    return [concern for _, concern in worst.values()]


def _of_one(name: str, part: FixedPointTensor, counts: UpdateCounts) -> list[tuple[float, Concern]]:
    """Each concern with how many times its threshold it is."""
    format, bits = part.format, part.format.word_length
    found = []
    if not format.dynamic:  # a dynamic format's range follows the numbers
        said = (
            f"{counts.saturated_share:.1%} of the numbers of {name} are out of the range of {format}, and are clipped: "
            "use a smaller fraction_length, or fraction_length=None, whose range follows the numbers"
        )
        found.append((counts.saturated_share / SATURATED, Concern("saturated", name, said)))
    if part.rounding == "nearest":
        said = (
            f"{counts.lost_share:.0%} of the updates of {name} are smaller than half a code of {format}, and rounding "
            f'to nearest drops them: use rounding="stochastic", which keeps them on average, or more than {bits} bits'
        )
        found.append((counts.lost_share / LOST, Concern("lost", name, said)))
    else:
        said = (
            f"rounding {name} to {format} adds noise {counts.noise_to_update:.1f} times as large as its updates: use "
            f"more than {bits} bits, a ramp (WordLengthRamp), or a larger learning rate"
        )
        found.append((counts.noise_to_update / NOISE, Concern("noise", name, said)))
    return found
