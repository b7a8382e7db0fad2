"""A word-length ramp at work in a Lightning run: what it looks at, and what is widened when it says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lowprec_plugin.arithmetic.reference.wire import WORD_LENGTHS
from lowprec_plugin.compat.lightning import check_after_closure, is_fitting, loaded_checkpoint
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.optim.lost_updates import evidence_of
from lowprec_plugin.optim.step import FixedPointStep
from lowprec_plugin.plugin.strategies import trainer_of
from lowprec_plugin.ramp import STEPS_PER_LOOK, RampState, WordLengthRamp, decide, observe
from lowprec_plugin.tensor.dtensor import fixed_part
from lowprec_plugin.tensor.widen import widened

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class Ramping:
    """Carries a ramp through a run. Every rank holds one, and all decide alike: they share what they look at.

    Args:
        ramp: what to do, which :func:`~lowprec_plugin.ramp.check_ramp` has passed.
        format: of the weights at the start.

    Attributes:
        history: every widening: ``step``, ``word_length`` and ``reason``.
    """

    def __init__(self, ramp: WordLengthRamp, format: FixedPointFormat) -> None:
        check_after_closure()
        self.ramp = ramp
        self._first = format
        self.history: list[dict[str, Any]] = []
        self._state = RampState()
        self._losses: list[Tensor] = []
        self._stalled = False
        self._asked: list[int] = []  # optimizers whose updates were measured for the stall that there is
        self._forget_metrics()

    def _forget_metrics(self) -> None:
        self._epoch: int | None = None
        self._validated = self._ever_validated = False  # since the last look; in this fit
        self._seen: Tensor | None = None  # of the monitor: what was looked at last, itself
        self._unseen: float | None = None  # ... and what a checkpoint says was logged and not looked at

    def begin(self, module: nn.Module) -> None:
        """A fit of ``module`` begins, and what one before it has logged is gone.

        Raises:
            ValueError: if the ramp is to watch a loss that nobody shows it, or to widen what is sharded.
        """
        check_after_closure()
        self._forget_metrics()
        if any(isinstance(param, DTensor) and fixed_part(param) is not None for param in module.parameters()):
            raise ValueError(
                "a ramp cannot widen what FSDP2 or tensor parallelism has sharded: leave it out, or use DDP"
            )
        watches_loss = self.ramp.at is None and self.ramp.monitor is None
        if watches_loss and not getattr(module, "automatic_optimization", True):
            raise ValueError(
                "a ramp with monitor=None watches the loss that training_step returns, and under manual optimization "
                "Lightning hands none on: log a metric and name it as the ramp's monitor, or use a schedule (at=...)"
            )

    def validated(self) -> None:
        """A step of evaluation was run: while fitting, of validation."""
        self._validated = self._ever_validated = True

    def format_to_resume(self, module: nn.Module, format: FixedPointFormat) -> FixedPointFormat:
        """``format``, or what a run had that is being resumed, or tested: the first, or what it had widened it to.

        Lightning loads a checkpoint's weights into the float module, has it converted, and only then tells plugins
        what they had saved: converted to the first rung, the weights would lose what they were widened for.
        """
        trainer = trainer_of(module)
        if trainer is None:
            return format
        loaded = loaded_checkpoint(trainer)
        saved = [
            each["format"] for each in loaded.values() if isinstance(each, dict) and each.keys() >= {"format", "ramp"}
        ]
        if not saved:
            return format
        rungs = self.ramp.ladder if self.ramp.at is None else self.ramp.at.values()
        lengths = {FixedPointFormat.parse(each).word_length for each in saved} & set(rungs)
        # A fit goes back where ``format`` is of a later step. A test need not, for wider words hold the same, and a
        # module that was narrowed for it would round a later checkpoint.
        start = self._first if is_fitting(trainer) else format
        return widened(start, max(lengths | {start.word_length}))

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
        index = next(at for at, each in enumerate(trainer.optimizers) if each is optimizer)
        evidence = None if index in self._asked else evidence_of(optimizer)
        if evidence is None:  # nothing to measure in this step
            return None
        decision = decide(self.ramp, self._state, word_length, evidence)
        if decision.word_length is None:
            self._asked.append(index)
            which = f", for optimizer {index}" if len(trainer.optimizers) > 1 else ""
            rank_zero_info(f"words stay at {word_length} bits at step {trainer.global_step}{which}: {decision.reason}")
        else:
            self._note(trainer, word_length, decision.word_length, decision.reason)
        self._state = decision.state
        fixed = (at for at, each in enumerate(trainer.optimizers) if isinstance(each, FixedPointStep))
        if decision.word_length is not None or set(fixed) <= set(self._asked):
            self._stalled, self._asked = False, []
        return decision.word_length

    def after_update(self, trainer: Trainer, loss: Any) -> None:
        """Take in the training loss of a step."""
        if self.ramp.at is not None or self.ramp.monitor is not None or not isinstance(loss, Tensor):
            return
        # Lightning has divided it by the batches of a step, which may be others in another epoch.
        self._losses.append(trainer.accumulate_grad_batches * loss.detach().float().mean())
        if len(self._losses) >= STEPS_PER_LOOK:
            losses = self._shared_losses()
            self._losses.clear()
            finite = losses[losses.isfinite()]
            if len(finite):
                self._look(float(finite.mean()))

    def _shared_losses(self) -> Tensor:
        """The losses since the last look, each the mean over the ranks."""
        device = self._losses[-1].device  # a checkpoint's are on the CPU
        return _mean_over_ranks(torch.stack([loss.to(device) for loss in self._losses]))

    def _look_at_metric(self, trainer: Trainer, name: str) -> None:
        """Look at what was logged since the last look, if an epoch or a validation has ended since."""
        before, self._epoch = self._epoch, trainer.current_epoch
        if before is None:  # Lightning's sanity check is no validation
            self._validated = self._ever_validated = False
        ended = before not in (None, self._epoch)
        if not ended and not self._validated:
            return
        self._validated = False
        metric, unseen = trainer.callback_metrics.get(name), self._unseen
        if metric is None and unseen is None:
            if ended and (self._ever_validated or not trainer.enable_validation):
                raise ValueError(
                    f"the ramp's monitor={name!r} is not among the logged metrics: "
                    f"{', '.join(sorted(trainer.callback_metrics)) or 'there are none'}. Log it from the first epoch on"
                )
            return
        if metric is None:
            assert unseen is not None
            self._look(unseen)
        elif metric is not self._seen:  # Lightning keeps showing what was not logged anew
            self._look(float(_mean_over_ranks(metric.detach().float())))
        self._seen, self._unseen = metric, None

    def _look(self, metric: float) -> None:
        before = self._state
        self._state, stalled = observe(self.ramp, before, metric)
        improved = self._state.best != before.best
        if stalled or improved:  # what was measured is of a stall before: some optimizer may never have shown anything
            self._asked = []
        self._stalled = stalled or (self._stalled and not improved)

    def _note(self, trainer: Trainer, before: int, after: int, reason: str) -> None:
        rank_zero_info(f"words widened from {before} to {after} bits at step {trainer.global_step}: {reason}")
        self.history.append({"step": trainer.global_step, "word_length": after, "reason": reason})

    def state_dict(self, trainer: Trainer | None) -> dict[str, Any]:
        """Where the ramp stands, in plain numbers that all ranks share. Called on every rank."""
        if self._losses:  # shared now, here as in the run that goes on from this
            self._losses = list(self._shared_losses())
        return {
            "state": tuple(self._state), "history": list(self.history), "stalled": self._stalled,
            "asked": list(self._asked), "epoch": self._epoch, "validated": self._validated,
            "unseen": self._not_looked_at(trainer), "losses": [float(loss) for loss in self._losses],
        }  # fmt: skip

    def _not_looked_at(self, trainer: Trainer | None) -> float | None:
        if trainer is None or self.ramp.monitor is None:
            return None
        metric = trainer.callback_metrics.get(self.ramp.monitor)
        if metric is None or metric is self._seen:
            return self._unseen
        return float(_mean_over_ranks(metric.detach().float()))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` stood."""
        self._state, self.history = RampState(*state_dict["state"]), list(state_dict["history"])
        self._stalled, self._epoch = state_dict["stalled"], state_dict["epoch"]
        self._asked, self._unseen = list(state_dict.get("asked", [])), state_dict.get("unseen")
        self._validated = state_dict.get("validated", False)
        self._losses = [torch.tensor(loss, dtype=torch.float32) for loss in state_dict["losses"]]


def wire_word_length(word_length: int) -> int:
    """Bits of a gradient on the wire that follows the weights: as many, of those that it has."""
    return next((bits for bits in WORD_LENGTHS if bits >= word_length), max(WORD_LENGTHS))


def _mean_over_ranks(value: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
