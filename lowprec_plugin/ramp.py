"""When to widen the words: a state machine without clocks, tensors or ranks.

Training in short words may stall for two reasons. The learning rate or the data may be at fault, and then wider words
change nothing; or updates have become small beside a code, and the rounding drowns them. So two things must come
together: the smoothed metric stands still (:func:`observe`), and the updates measured at that moment are lost
(:func:`decide`). Words are widened along a ladder and never narrowed again: what a narrower code dropped is gone, and a
run that needed the bits once will need them at the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lowprec_plugin.formats import check_integer, check_kind, check_number, check_word_length
from lowprec_plugin.text.option_error import Option, OptionError

#: Steps whose mean training loss is one look.
STEPS_PER_LOOK = 10


@dataclass(frozen=True)
class WordLengthRamp:
    """How word lengths grow while a run trains.

    Args:
        ladder: word lengths, each wider than the one before.
        monitor: the name of a logged metric, looked at after every validation or epoch that has logged it anew;
            ``None``: the training loss, every ten steps' mean being one look.
        patience: looks without an improvement that make a stall.
        min_delta: an improvement is at least this share of the best value so far.
        cooldown: looks after a widening before the next stall can begin.
        smoothing: weight of the past in the exponential mean that is looked at; 0: the metric itself. The first
            ``1 / (1 - smoothing)`` looks only fill the mean.
        mode: ``"min"`` or ``"max"``: whether the metric is to fall or to rise.
        min_lost: updates are lost if at least this share of them is smaller than half a code, ...
        min_noise: ... or if rounding adds at least this multiple of the update's size (root mean squares).
        at: a schedule in place of all this: word length by the step or epoch from which it holds.
        unit: ``"epoch"`` or ``"step"``, of ``at``.

    Raises:
        ValueError: for a value outside its limits.
    """

    ladder: Sequence[int] = (12, 16, 20, 24)
    monitor: str | None = None
    patience: int = 50
    min_delta: float = 0.001
    cooldown: int = 50
    smoothing: float = 0.9
    mode: Literal["min", "max"] = "min"
    min_lost: float = 0.5
    min_noise: float = 2.0
    at: Mapping[int, int] | None = None
    unit: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        if not isinstance(self.ladder, Sequence) or isinstance(self.ladder, str):
            raise ValueError(f"ladder={self.ladder!r} is not a sequence of word lengths, such as (12, 16, 20, 24)")
        if self.at is not None and not isinstance(self.at, Mapping):
            raise ValueError(f"at={self.at!r} does not map epochs or steps to word lengths, as {{30: 16, 60: 20}} does")
        if self.at is not None and self.monitor is not None:
            raise ValueError(f"monitor={self.monitor!r} beside at: a schedule watches nothing, so drop one of them")
        for name in ("patience", "cooldown"):
            check_integer(getattr(self, name), name)
        if self.patience < 1 or self.cooldown < 0:
            raise ValueError(f"patience={self.patience} must be at least 1, cooldown={self.cooldown} at least 0")
        for name, low, high in (("min_delta", 0, 1), ("smoothing", 0, 1), ("min_lost", 0, 2), ("min_noise", 0, 1e9)):
            check_number(getattr(self, name), name, low, high)
        if self.monitor is not None:
            check_kind(self.monitor, str, "monitor")
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode={self.mode!r} is not 'min' or 'max'")
        if self.unit not in ("epoch", "step"):
            raise ValueError(f"unit={self.unit!r} is not 'epoch' or 'step'")
        if self.at is not None:
            for start in self.at:
                check_integer(start, f"a key of at, {self.unit}")
            object.__setattr__(self, "at", dict(sorted(self.at.items())))
        rungs = list(self.ladder if self.at is None else self.at.values())
        for rung in rungs:
            check_word_length(rung, "a rung of the ladder" if self.at is None else "a word length of at")
        if not rungs or any(after <= before for before, after in itertools.pairwise(rungs)):
            where = "ladder" if self.at is None else "at"
            raise ValueError(f"{where}: word lengths {rungs} must grow: words are never narrowed again")

    def after(self, word_length: int) -> int | None:
        """The next rung above ``word_length``; ``None`` at the top."""
        return next((rung for rung in self.ladder if rung > word_length), None)

    def scheduled(self, now: int) -> int | None:
        """The word length that ``at`` has for step or epoch ``now``; ``None`` before its first."""
        assert self.at is not None
        return max((length for start, length in self.at.items() if start <= now), default=None)


def check_ramp(ramp: object, word_length: int) -> None:
    """Raise ``ValueError`` unless ``ramp`` is one that weights of ``word_length`` bits can begin on."""
    if not isinstance(ramp, WordLengthRamp):
        argument = "at" if isinstance(ramp, dict) else "ladder"
        raise OptionError(
            Option.given("ramp", ramp), f" is not a WordLengthRamp: write WordLengthRamp({argument}={ramp!r})"
        )
    start = Option.given("word_length", word_length)
    if ramp.at is None and word_length not in ramp.ladder:
        raise OptionError(start, f" is not a rung of the ramp's ladder, {tuple(ramp.ladder)}")
    if ramp.at is not None and min(ramp.at.values()) < word_length:
        raise OptionError(f"the ramp's at={ramp.at} narrows ", start, ": words are only ever widened")


class Evidence(NamedTuple):
    """What rounding does to the updates of one step.

    Attributes:
        lost: share of the elements with an update other than zero whose update is smaller than half a code.
        noise: root mean square of the rounding error, as a multiple of the update's.
    """

    lost: float
    noise: float


class RampState(NamedTuple):
    """Where a ramp stands. Plain numbers, to be checkpointed.

    Attributes:
        smoothed: exponential mean of the metric, corrected for its start.
        weight: what the correction divides by.
        best: the best of ``smoothed``.
        waited: looks since then.
        cooling: looks until a stall can begin.
    """

    smoothed: float = 0.0
    weight: float = 0.0
    best: float = math.inf
    waited: int = 0
    cooling: int = 0


class Decision(NamedTuple):
    """What came of a stall.

    Attributes:
        state: after it.
        word_length: to widen to; ``None``: not for this reason, or the ladder ends.
        reason: in words, with the figures.
    """

    state: RampState
    word_length: int | None
    reason: str


def observe(ramp: WordLengthRamp, state: RampState, metric: float) -> tuple[RampState, bool]:
    """One look at the metric. A value that is not finite is no look at all.

    Returns:
        the state after it, and whether the run has stalled.
    """
    if not math.isfinite(metric):
        return state, False
    metric = metric if ramp.mode == "min" else -metric
    total = ramp.smoothing * state.smoothed * state.weight + (1 - ramp.smoothing) * metric
    weight = ramp.smoothing * state.weight + (1 - ramp.smoothing)
    smoothed = total / weight
    state = state._replace(smoothed=smoothed, weight=weight)
    if weight < 1 - 1 / math.e:  # a mean of few looks is mostly their noise, and a lucky one would stand as the best
        return state._replace(best=smoothed), False
    if state.cooling > 0:
        return state._replace(cooling=state.cooling - 1, best=smoothed, waited=0), False
    if not math.isfinite(state.best) or smoothed < state.best - ramp.min_delta * abs(state.best):
        return state._replace(best=smoothed, waited=0), False
    state = state._replace(waited=state.waited + 1)
    return state, state.waited >= ramp.patience


def decide(ramp: WordLengthRamp, state: RampState, word_length: int, evidence: Evidence) -> Decision:
    """What to do about a stall at ``word_length``. Either way the next one takes ``patience`` looks again."""
    figures = (
        f"{100 * evidence.lost:.0f} % of the updates are smaller than half a code and rounding adds "
        f"{evidence.noise:.2g} times their size"
    )
    if evidence.lost < ramp.min_lost and evidence.noise < ramp.min_noise:
        reason = f"the stall is not one of precision: {figures}. Look at the learning rate or the data"
        return Decision(state._replace(waited=0), None, reason)
    wider = ramp.after(word_length)
    if wider is None:
        return Decision(state._replace(waited=0), None, f"updates are being lost ({figures}) at the end of the ladder")
    return Decision(
        RampState(cooling=ramp.cooldown), wider, f"updates are being lost: {figures}; {word_length} to {wider} bits"
    )
