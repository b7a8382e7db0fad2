"""How an optimizer updates fixed-point parameters, and what came of it."""

from __future__ import annotations

from lowprec_plugin.arithmetic.update_counts import UpdateCounts, total
from lowprec_plugin.optim.options import StepOptions
from lowprec_plugin.optim.tally import Tally


class StepSettings(StepOptions):
    """How an optimizer updates fixed-point parameters.

    Args: those of :class:`~lowprec_plugin.optim.options.StepOptions`.

    Attributes:
        skipped_steps: steps skipped so far.
        saturated: numbers that were out of range when they were rounded, so far.
        counting: whether the coming steps count what they do. For whoever wants to know; off at first.
        counts: what the last counted step did to each fixed-point parameter, of a sharded one to this rank's rows.
            Named as the parameter is; where it has no name or not alone, by its place in the optimizer, as "parameter
            3". Empty if that step was skipped or refused, or none was counted.
        tally: adds up what the coming step does, while an optimizer's own step is to be measured.
        said: whether it has been said what an optimizer's own step holds in floats.
        looked_at_gradients: whether it has been seen that those are codes which are to be.
    """

    __setattr__ = object.__setattr__  # unlike the options of a plugin, they may change between steps
    __hash__ = None  # type: ignore[assignment]

    # Of the class: pickles hold of them what has changed.
    skipped_steps: int = 0
    saturated: int = 0
    counting: bool = False
    tally: Tally | None = None
    said: bool = False
    looked_at_gradients: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.counts: dict[str, UpdateCounts] = {}

    def note(self, name: str, counts: UpdateCounts) -> None:
        """Keep what a counted step did to the parameter ``name``, perhaps in several parts."""
        self.counts[name] = total([self.counts[name], counts]) if name in self.counts else counts
