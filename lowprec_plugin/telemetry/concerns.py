"""What in the counts of an update should worry somebody, and the remedy, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from lowprec_plugin.arithmetic.update_counts import UpdateCounts, total
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.dtensor import fixed_part

#: Of a layer's numbers, out of range: clipping pulls them all one way, and no rounding mends that.
SATURATED = 0.01
#: Of a layer's updates, smaller than half a code, ...
LOST = 0.5
#: ... and the size of what rounding to nearest dropped, of the updates' (root mean squares): a quarter of what they add
#: up to when squared. The share alone would accuse an embedding, most of whose rows had no gradient in a step.
DROPPED = 0.5
#: A layer whose updates are so small beside those of all layers (root mean squares) stands still with or without
#: rounding, as a bias in front of a batch normalisation does: it is not judged by what rounding does to them.
STILL = 0.01
#: The size of stochastic rounding's noise, of the updates': as ``WordLengthRamp``'s ``min_noise``.
NOISE = 2.0


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
    """The worst layer of each cause, if that is bad enough. docs/monitor.md says what the limits were measured on.

    Args:
        counts: of all counted steps, by the parameters' names in ``module``. Of one alone they say little: where the
            learning rate is next to nothing, as a schedule begins and ends, updates are small and nothing is amiss.
    """
    worst: dict[str, tuple[float, Concern]] = {}
    still = STILL * _size(total(list(counts.values())))
    for name, param in module.named_parameters():
        part = fixed_part(param)
        if part is not None and name in counts:
            for how_bad, concern in _of_one(name, part, counts[name], still):
                if how_bad > worst.get(concern.cause, (1.0, None))[0]:
                    worst[concern.cause] = how_bad, concern
    return [concern for _, concern in worst.values()]


def _size(counts: UpdateCounts) -> float:
    """Root mean square of the updates."""
    return math.sqrt(counts.update_squares / max(1, counts.elements))


def _of_one(name: str, part: FixedPointTensor, counts: UpdateCounts, still: float) -> list[tuple[float, Concern]]:
    """What might be wrong, each with how many times its limit it is."""
    format, saturated, noise = part.format, counts.saturated_share, counts.noise_to_update
    # Behind a radix point that is given, more bits are no finer ones.
    more = f"more than {format.word_length} bits" if format.dynamic else "a larger fraction_length or none"
    said = (
        f"{saturated:.1%} of the numbers of {name} ({format}) and its state are out of their formats' range, and are "
        "clipped: use a smaller fraction_length (of state state_fraction_length), or none, so that the range follows "
        "the numbers"
    )
    found = [(saturated / SATURATED, Concern("saturated", name, said))]
    if _size(counts) < still:
        return found
    if part.rounding == "nearest":
        said = (
            f"{counts.lost_share:.0%} of the updates of {name} are smaller than half a code of {format}, and rounding "
            f'to nearest drops them: use rounding="stochastic", which keeps them on average, or {more}'
        )
        found.append((min(counts.lost_share / LOST, noise / DROPPED), Concern("lost", name, said)))
    else:
        said = (
            f"rounding {name} to {format} adds noise {noise:.1f} times as large as its updates: use {more}, or a ramp "
            "(WordLengthRamp)"
        )
        found.append((noise / NOISE, Concern("noise", name, said)))
    return found
