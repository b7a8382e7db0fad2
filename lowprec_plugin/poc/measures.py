"""What is measured while a run trains, beside what its monitor logs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lowprec_plugin import memory
from lowprec_plugin.activations.packed import is_weight
from lowprec_plugin.compat.bases import Callback
from lowprec_plugin.compat.overrides import outside_overrides
from lowprec_plugin.monitoring.watched import watched
from lowprec_plugin.optim.finite import NonFiniteGradientError
from lowprec_plugin.telemetry import held

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class Measures(Callback):
    """Times steps, and adds up what is held: of the first batch what autograd saves, at the end weights and state.

    Args:
        untimed: at every so many optimizer steps something else looks at the run: that step is not timed, and its
            gradients are counted. The first is one of them.

    Attributes:
        examples: in a batch; 0 if nothing tells.
        activations: bytes that autograd saved for the backward pass of the first batch, parameters left out.
        copies: bytes that it saved of copies of parameters, as autocast makes them in bfloat16.
        held, float32: bytes by kind, of this process, and what float32 would take; empty until the end.
        parameters: numbers in all of them.
        sent, float32_sent: bytes of gradients sent per step, and what float32 would.
        loss: of the last step.
        nonfinite: the first parameter with a gradient that was not finite, if an update was refused for it.
        validated: the step of the last validation; ``None``: there was none.
        at_validation: what had been logged last at its end.
    """

    def __init__(self, untimed: int) -> None:
        self._untimed = untimed
        self._seconds: list[float] = []
        self._watched: list[float] = []  # seconds of the steps that were looked at
        self._start = self._elapsed = 0.0  # of the batch; of all batches since the last step
        self._step: int | None = None  # at which those batches began; None: not yet
        self._looks = -1  # that have been made
        self._looked = False
        self._begun = False
        self._saved: _Saved | None = None
        self._gradients = (0, 0)
        self.examples = 0
        self.activations = self.copies = 0
        self.held: dict[str, int] = {}
        self.float32: dict[str, int] = {}
        self.parameters = 0
        self.sent = self.float32_sent = 0.0
        self.loss: Tensor | None = None
        self.nonfinite: str | None = None
        self.validated: int | None = None
        self.at_validation: dict[str, float] = {}

    @property
    def step_ms(self) -> dict[str, float]:
        """Of an optimizer step, all batches that it takes together or its share of a batch that makes several.

        ``median``, ``fast`` and ``slow``: outside each of the latter are a tenth of the steps.
        """
        timed = self._seconds or self._watched[1:]  # every batch of a short run may make a step that is looked at
        return deciles([1e3 * seconds for seconds in timed])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock, and at the first batch look at what autograd saves."""
        if self._step is None:
            self._step, look = trainer.global_step, trainer.global_step // self._untimed
            self._looks, self._looked = look, look > self._looks
        if not self._begun:
            self._begun = True
            self.examples = examples_in(batch, trainer.train_dataloader)
            self._saved = _Saved(pl_module)
            self._saved.__enter__()
        _wait_for(trainer)
        self._start = time.perf_counter()

    def on_before_backward(self, trainer: Trainer, *args: Any) -> None:
        """All is saved now, by autograd or in codes by the plugin."""
        if self._saved is not None:
            self._saved.__exit__()
            kept = watched(trainer).kept
            self.activations = self._saved.activations + (0 if kept is None else kept.stored + kept.left)
            self.copies = self._saved.copies
            self._saved = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Look no longer, for the hook would outlive the run; and find what refused an update."""
        self.on_before_backward(trainer)
        if isinstance(exception, NonFiniteGradientError):
            grads = ((name, param.grad) for name, param in pl_module.named_parameters())
            self.nonfinite = next((name for name, grad in grads if grad is not None and _not_finite(grad)), None)

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        """Look at the gradients while there are some: of several optimizers, or batches, those that had most."""
        if self._looked:
            self._gradients = max(self._gradients, memory.gradients(watched(trainer).module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Stop the clock."""
        _wait_for(trainer)
        self._elapsed += time.perf_counter() - self._start
        self.on_before_backward(trainer)  # a module that never calls it
        assert self._step is not None
        if made := trainer.global_step - self._step:
            (self._watched if self._looked else self._seconds).append(self._elapsed / made)
            self._step, self._elapsed = None, 0.0
        self.loss = outputs.get("loss") if isinstance(outputs, dict) else None

    def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
        """Note when, and what is logged, for training may log more by these names; the sanity check is at step 0."""
        self.validated, self.at_validation = trainer.global_step, logged(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up weights and state while the optimizer is there, and what has been sent."""
        run = watched(trainer)
        report = memory.report(run.module, run.optimizers)
        kinds = held(report, self._gradients)
        self.held, self.float32 = (
            {"weights": each.weights, "state": each.state, "gradients": each.gradients, "buffers": report.buffers}
            for each in (kinds.ours, kinds.float32)
        )
        self.held["activations"] = self.activations
        self.held["weights"] += self.copies
        self.parameters = report.elements
        if trainer.world_size > 1:
            trainable = sum(param.numel() for param in pl_module.parameters() if param.requires_grad)
            floats = 2 * (trainer.world_size - 1) / trainer.world_size * 4 * trainable
            self.float32_sent = run.traffic.get("float32_bytes_per_step", floats)
            self.sent = run.traffic.get("bytes_sent_per_step", floats)


def logged(trainer: Trainer) -> dict[str, float]:
    """The numbers that the module has logged last, by name."""
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if isinstance(value, Tensor) and value.numel() == 1
    }


def examples_in(batch: Any, loader: Any) -> int:
    """How many examples a batch holds: the loader's ``batch_size``, or its batch sampler's, for a graph has many rows.

    If neither says, the one length of a tensor, or of a tuple, list or dict of tensors; of anything else 0: unknown.
    """
    for says in (loader, getattr(loader, "batch_sampler", None)):
        if isinstance(size := getattr(says, "batch_size", None), int):
            return size
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    lengths = {len(part) if isinstance(part, Tensor) and part.dim() else 0 for part in parts}
    return lengths.pop() if len(lengths) == 1 else 0


def deciles(numbers: Sequence[float]) -> dict[str, float]:
    """``median``, ``fast`` and ``slow``; empty of no numbers."""
    if not numbers:
        return {}
    tenths = statistics.quantiles(numbers, n=10, method="inclusive") if len(numbers) > 1 else [numbers[0]]
    return {"median": statistics.median(numbers), "fast": tenths[0], "slow": tenths[-1]}


def _not_finite(gradient: Tensor) -> bool:
    return not bool(gradient.isfinite().all())


def _wait_for(trainer: Trainer) -> None:
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)


class _Saved(saved_tensors_hooks):
    """Adds up what autograd saves, each storage once: copies of weights, and the rest; the weights themselves aside."""

    def __init__(self, module: LightningModule) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        floats = [param for param in module.parameters() if type(param) is nn.Parameter]
        self._own = {param.untyped_storage().data_ptr() for param in floats}
        self._copies: dict[int, int] = {}
        self._rest: dict[int, int] = {}

    @property
    def copies(self) -> int:
        return sum(self._copies.values())

    @property
    def activations(self) -> int:
        return sum(self._rest.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        with outside_overrides():
            if type(tensor) is Tensor:  # fixed-point weights are of another type
                address = tensor.untyped_storage().data_ptr()
                if address not in self._own:
                    sizes = self._copies if is_weight(tensor) else self._rest
                    sizes[address] = max(sizes.get(address, 0), tensor.nbytes)
        return tensor
