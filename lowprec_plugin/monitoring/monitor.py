"""The callback."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lowprec_plugin import memory
from lowprec_plugin.activations.packed import KeptBytes
from lowprec_plugin.arithmetic.update_counts import UpdateCounts, total
from lowprec_plugin.compat.bases import Callback
from lowprec_plugin.compat.lightning import misconfiguration, step_of_logs
from lowprec_plugin.formats import check_integer, check_kind
from lowprec_plugin.memory import MemoryTracker, Moment
from lowprec_plugin.monitoring import panels
from lowprec_plugin.monitoring.figures import Captured, figures
from lowprec_plugin.monitoring.watched import Watched, watched
from lowprec_plugin.telemetry import LayerReport, concerns, layers, peak_bytes

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class FixedPointMonitor(Callback):
    """Logs what a run holds, sends and loses to rounding: scalars under ``lowprec/`` in every logger.

    ::

        Trainer(plugins=FixedPointPrecision(), callbacks=[FixedPointMonitor()], logger=WandbLogger(project="mine"))

    Bytes held by weights, optimizer state and gradients, what float32 and bf16 mixed precision would hold of the same,
    what was planned, the peak of memory and what it is for, bytes sent, and how much of the updates was clipped or
    lost: docs/monitor.md explains each figure. A run without a fixed-point plugin may be watched too, to be compared
    with. Something that should worry you is said once, in a warning.

    Args:
        every_n_steps: steps between two looks, the first of which is at the first step. A look takes part of a step:
            at the default less than a hundredth of the time.
        layers: also log histograms over blocks and layers, and one table of all layers at the end of a fit, where the
            logger can (``WandbLogger``, ``TensorBoardLogger``).

    Raises:
        ValueError: for an interval of less than one step.
        MisconfigurationException: at the start of a fit, if the Trainer has no logger.
    """

    def __init__(self, every_n_steps: int = 50, layers: bool = False) -> None:
        check_integer(every_n_steps, "every_n_steps")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} is less than 1: give the steps between two looks")
        check_kind(layers, bool, "layers")
        self.every_n_steps = every_n_steps
        self._per_layer = layers
        self._counts: dict[str, UpdateCounts] = {}
        self._run: Watched | None = None  # while it trains
        self._rows: list[LayerReport] = []
        self._next = 0
        self._begun = False
        self._captured: Captured | None = None
        self._kept_before: KeptBytes | None = None
        self._tracker: MemoryTracker | None = None  # while a batch is followed
        self._at_peak: Moment | None = None
        self._feared: set[str] = set()  # causes that the look before this one found
        self._said: set[str] = set()

    def layers(self) -> list[LayerReport]:
        """A row per parameter: how it is stored, or was when the fit ended, and the shares over all counted steps."""
        if self._run is not None:
            self._rows = layers(self._run.module, self._run.optimizers, self._counts)
        return self._rows

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget a fit before this one; what a checkpoint says comes after."""
        if stage == "fit":
            self._counts, self._rows, self._said = {}, [], set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to look.

        Raises:
            MisconfigurationException: if the Trainer has no logger.
        """
        if not trainer.loggers:
            raise misconfiguration(
                trainer, f"Cannot use `{type(self).__name__}` callback with `Trainer` that has no logger."
            )
        self._next, self._captured, self._feared, self._begun = step_of_logs(trainer), None, set(), False
        self._at_peak = None

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Note what has been kept of activations, to tell what this step keeps, and follow its memory."""
        self._stop_following()
        if step_of_logs(trainer) < self._next:
            return
        run = watched(trainer)
        self._kept_before = copy.copy(run.kept)
        for optimizer in run.fixed:
            if optimizer.releasing is not None:  # updates in the backward pass
                optimizer.fixed_point.counting, optimizer.fixed_point.counts = True, {}
        if run.can_be_followed:
            self._tracker = MemoryTracker(run.module, run.optimizers)
            self._tracker.__enter__()

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        """Look at the gradients while there are some, and have the step counted."""
        if step_of_logs(trainer) < self._next:
            return
        run = watched(trainer)
        if not self._begun:
            self._begun = True
            panels.begin(trainer.loggers, run, trainer.precision_plugin)
        gradients, peak = memory.gradients(run.module), peak_bytes(trainer.strategy.root_device)
        if self._captured is None:
            for optimizer in run.fixed:
                if optimizer.releasing is None:
                    optimizer.fixed_point.counting, optimizer.fixed_point.counts = True, {}
        else:  # of another optimizer in the same batch
            gradients = max(gradients, self._captured.gradients)
        self._captured = Captured(gradients, _since(self._kept_before, run.kept), peak)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Log the step, if it was one to look at."""
        self._stop_following()
        if self._captured is None:
            return
        run, step = watched(trainer), step_of_logs(trainer)
        found = figures(run, self._captured, self._at_peak, trainer.strategy.root_device)
        for optimizer in run.fixed:
            optimizer.fixed_point.counting = False
        self._captured, self._at_peak, self._next = None, None, (step // self.every_n_steps + 1) * self.every_n_steps
        for name, counts in found.counts.items():
            self._counts[name] = total([self._counts.get(name, UpdateCounts()), counts])
        self._run = run
        device = trainer.strategy.root_device
        trainer.callback_metrics.update(
            {name: torch.tensor(value, dtype=torch.float32, device=device) for name, value in found.scalars.items()}
        )
        for logger in trainer.loggers:
            logger.log_metrics(found.scalars, step=step)
        panels.saved(trainer.loggers, found.scalars)
        if self._per_layer:
            panels.histograms(trainer.loggers, found, step)
        self._warn(run)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the layers, if they are wanted."""
        rows = self.layers()
        self._run = None
        if self._per_layer and rows:
            panels.table(trainer.loggers, rows, step_of_logs(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remember the layers as they are."""
        self._stop_following()
        self.layers()
        self._run = None

    def _stop_following(self) -> None:
        """Of the micro-batches of a step, the one that takes most is kept."""
        if self._tracker is not None:
            self._tracker.__exit__(None, None, None)
            peak = self._tracker.timeline().peak
            self._tracker = None
            if self._at_peak is None or peak.total > self._at_peak.total:
                self._at_peak = peak

    def _warn(self, run: Watched) -> None:
        """Say once what is amiss at two looks in a row, for a first step is like no other. A ramp sees to its own."""
        feared = [each for each in concerns(run.module, self._counts) if each.cause == "saturated" or not run.ramping]
        for concern in feared:
            if concern.cause in self._feared and concern.cause not in self._said:
                self._said.add(concern.cause)
                rank_zero_warn(concern.said)
        self._feared = {concern.cause for concern in feared}

    def state_dict(self) -> dict[str, Any]:
        """What has been counted so far."""
        return {"counts": {name: tuple(counts) for name, counts in self._counts.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._counts = {name: UpdateCounts(*counts) for name, counts in state_dict["counts"].items()}


def _since(before: KeptBytes | None, now: KeptBytes | None) -> KeptBytes | None:
    if before is None or now is None:
        return None
    return KeptBytes(*(getattr(now, name) - getattr(before, name) for name in vars(now)))
