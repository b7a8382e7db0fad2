"""How an optimizer updates fixed-point parameters, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.update_counts import UpdateCounts, total
from lowprec_plugin.formats import FixedPointFormat, check_word_length
from lowprec_plugin.optim.tally import Tally

NONFINITE = ("raise", "skip")


@dataclass
class StepSettings:
    """How an optimizer updates fixed-point parameters.

    Args:
        state_word_length: bits of the state; ``None``: as each parameter.
        rounding: ``"stochastic"`` or ``"nearest"``.
        nonfinite: on a NaN or infinite gradient ``"raise"``, or ``"skip"`` the step and count it.
        state_fraction_length: bits behind the radix point of all state, which a state word length goes with; ``None``:
            every block of state has a radix point of its own.

    Attributes:
        skipped_steps: steps skipped so far.
        saturated: numbers that were out of range when they were rounded, so far.
        counting: whether the coming steps count what they do. For whoever wants to know; off at first.
        counts: what the last counted step did to each fixed-point parameter, of a sharded one to this rank's rows.
            Named by its label; where it has none or not alone, by its place in the optimizer, as "parameter 3".
            Empty if that step was skipped or refused, or none was counted.
        tally: adds up what the coming step does, while an optimizer's own step is to be measured.
        said: whether it has been said what an optimizer's own step holds in floats.
    """

    state_word_length: int | None = None
    rounding: str = "stochastic"
    nonfinite: str = "raise"
    state_fraction_length: int | None = None
    skipped_steps: int = field(default=0, init=False)
    saturated: int = field(default=0, init=False)
    counting: bool = field(default=False, init=False)
    counts: dict[str, UpdateCounts] = field(default_factory=dict, init=False)
    tally: Tally | None = field(default=None, init=False)
    said: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        ops.check_rounding(self.rounding)
        if self.state_word_length is not None:
            check_word_length(self.state_word_length, "state_word_length")
        if self.state_fraction_length is not None:
            if self.state_word_length is None:
                length = self.state_fraction_length
                raise ValueError(f"state_fraction_length={length} needs a state_word_length, which ramps leave alone")
            FixedPointFormat(self.state_word_length, self.state_fraction_length)  # refuses bad values
        if self.nonfinite not in NONFINITE:
            raise ValueError(f"nonfinite={self.nonfinite!r} is not one of {NONFINITE}")

    def note(self, name: str, counts: UpdateCounts) -> None:
        """Keep what a counted step did to the parameter ``name``, perhaps in several parts."""
        self.counts[name] = total([self.counts[name], counts]) if name in self.counts else counts

    def given(self) -> dict[str, Any]:
        """The arguments, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.init}
