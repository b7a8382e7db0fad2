"""A word-length ramp at work in a Lightning run: what it looks at, and what is widened when it says so."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.optim.evidence import evidence_of
from lowprec_plugin.optim.step import FixedPointStep
from lowprec_plugin.ramp import RampState, WordLengthRamp, decide, observe
from lowprec_plugin.widening import widened
from lowprec_plugin.wire_reference import WORD_LENGTHS

#: Steps whose mean training loss is one look.
STEPS_PER_LOOK = 10


class Ramping:
    """Carries a ramp through a run. Every rank holds one, and all decide alike: they share what they look at.

    Attributes:
        history: every widening: ``step``, ``word_length`` and ``reason``.
    """

    def __init__(self, ramp: WordLengthRamp) -> None:
        self.ramp = ramp
        self.history: list[dict[str, Any]] = []
        self._state = RampState()
        self._losses: list[Tensor] = []
        self._stalled = False
        self._epoch: int | None = None

    def format_to_resume(self, module: nn.Module, format: FixedPointFormat) -> FixedPointFormat:
        """``format``, or what a run that is being resumed had widened it to.

        Lightning loads a checkpoint's weights into the float module, has it converted, and only then tells plugins
        what they had saved: converted to the first rung, the weights would lose what they were widened for.
        """
        trainer = getattr(module, "_trainer", None)
        loaded = getattr(getattr(trainer, "_checkpoint_connector", None), "_loaded_checkpoint", None) or {}
        saved = [
            each["format"] for each in loaded.values() if isinstance(each, dict) and each.keys() >= {"format", "ramp"}
        ]
        rungs = self.ramp.ladder if self.ramp.at is None else self.ramp.at.values()
        lengths = {FixedPointFormat.parse(each).word_length for each in saved} & set(rungs)
        return widened(format, max(lengths | {format.word_length}))

    def before_update(self, trainer: Trainer, optimizer: Any, word_length: int) -> int | None:
        """What to widen to before the update whose gradients are ready; ``None``: leave ``word_length``."""
        if self.ramp.at is not None:
            wanted = self.ramp.scheduled(trainer.current_epoch if self.ramp.unit == "epoch" else trainer.global_step)
            if wanted is None or wanted <= word_length:
                return None
            self._note(trainer, word_length, wanted, "by the schedule")
            return wanted
        if self.ramp.monitor is not None:
            self._look_at_metric(trainer, self.ramp.monitor)
        if not self._stalled or not isinstance(optimizer, FixedPointStep):
            return None
        self._stalled = False
        decision = decide(self.ramp, self._state, word_length, evidence_of(optimizer))
        self._state = decision.state
        if decision.word_length is None:
            rank_zero_info(f"words stay at {word_length} bits at step {trainer.global_step}: {decision.reason}")
        else:
            self._note(trainer, word_length, decision.word_length, decision.reason)
        return decision.word_length

    def after_update(self, loss: Any) -> None:
        """Take in the training loss of a step."""
        if self.ramp.at is not None or self.ramp.monitor is not None or not isinstance(loss, Tensor):
            return
        self._losses.append(loss.detach().float())
        if len(self._losses) >= STEPS_PER_LOOK:
            self._look(torch.stack(self._losses).mean())
            self._losses.clear()

    def _look_at_metric(self, trainer: Trainer, name: str) -> None:
        """Look at what the epoch before has left, once an epoch."""
        before, self._epoch = self._epoch, trainer.current_epoch
        if before is None or before == self._epoch:
            return
        metric = trainer.callback_metrics.get(name)
        if metric is None:
            raise ValueError(
                f"the ramp's monitor={name!r} is not among the logged metrics: "
                f"{', '.join(sorted(trainer.callback_metrics)) or 'there are none'}"
            )
        self._look(metric.detach().float())

    def _look(self, metric: Tensor) -> None:
        self._state, stalled = observe(self.ramp, self._state, _mean_over_ranks(metric))
        self._stalled |= stalled

    def _note(self, trainer: Trainer, before: int, after: int, reason: str) -> None:
        rank_zero_info(f"words widened from {before} to {after} bits at step {trainer.global_step}: {reason}")
        self.history.append({"step": trainer.global_step, "word_length": after, "reason": reason})

    def state_dict(self) -> dict[str, Any]:
        """Where the ramp stands, in plain numbers."""
        return {
            "state": tuple(self._state), "history": self.history, "stalled": self._stalled, "epoch": self._epoch,
            "losses": [float(loss) for loss in self._losses],
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` stood."""
        self._state, self.history = RampState(*state_dict["state"]), list(state_dict["history"])
        self._stalled, self._epoch = state_dict["stalled"], state_dict["epoch"]
        self._losses = [torch.tensor(loss) for loss in state_dict["losses"]]


def wire_word_length(word_length: int) -> int:
    """Bits of a gradient on the wire that follows the weights: as many, of those that it has."""
    return next((bits for bits in WORD_LENGTHS if bits >= word_length), max(WORD_LENGTHS))


def _mean_over_ranks(value: Tensor) -> float:
    if dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return float(value)
