"""What rounding does to the updates of a step, added up over its parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.reference import rounding as reference
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.ramp import Evidence


class Tally:
    """Each update is held against the size of a code where it lands.

    The rounding error is the one that is expected: of an update ``k + f`` codes, stochastic rounding errs by
    ``f (1 - f)`` squared codes in the mean, rounding to nearest by the square of the distance.
    """

    def __init__(self, rounding: str) -> None:
        self._rounding = rounding
        self._measured = False
        self._moved = self._lost = self._updates = self._errors = 0.0

    def add(self, before: Tensor, after: Tensor, blocks: Blocks, format: FixedPointFormat) -> None:
        """Add the update from ``before`` to ``after``, float32 of the codes' shape, to what ``blocks`` hold so far."""
        self._measured = True
        update = (after - before).double()
        code = reference.code_size(blocks, format)
        rest = torch.remainder(update / code, 1.0)
        error = rest * (1 - rest) if self._rounding == "stochastic" else torch.minimum(rest, 1 - rest).square()
        self._moved += float((update != 0).sum())
        self._lost += float(((update != 0) & (update.abs() < code / 2)).sum())
        self._updates += float(update.square().sum())
        self._errors += float((error * code.square()).sum())

    def evidence(self) -> Evidence | None:
        """See :class:`~lowprec_plugin.ramp.Evidence`; ``None`` if nothing was added, or an update is not finite."""
        if not self._measured or not math.isfinite(self._updates):
            return None
        noise = (self._errors / self._updates) ** 0.5 if self._updates > 0 else 0.0
        return Evidence(self._lost / max(self._moved, 1.0), noise)
