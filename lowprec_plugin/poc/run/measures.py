"""What is measured while a run trains, beside what its monitor logs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lowprec_plugin import memory
from lowprec_plugin.activations.packed import is_weight
from lowprec_plugin.arithmetic.devices import wait_for
from lowprec_plugin.compat.bases import Callback
from lowprec_plugin.compat.overrides import outside_overrides
from lowprec_plugin.monitoring.watched import watched
from lowprec_plugin.optim.finite import NonFiniteGradientError
from lowprec_plugin.telemetry import held

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class Measures(Callback):
    """Times steps, and counts bytes: what autograd saves of the first batch, and weights and state at the end.

    Args:
        untimed: every so many optimizer steps, beginning with the first, the monitor looks at the run: that step is
            not timed, and its gradients are counted.
    """

    def __init__(self, untimed: int) -> None:
        self._untimed = untimed
        self._seconds: list[float] = []
        self._watched: list[float] = []  # of steps at which the monitor looked
        self._start = self._elapsed = 0.0  # of the batch; of all batches since the last step
        self._step: int | None = None  # at which those batches began
        self._looks = -1
        self._looked = self._begun = False
        self._saved: _Saved | None = None
        self._gradients = (0, 0)
        self.examples = 0  # in a batch; 0: unknown
        self.activations = 0  # bytes that autograd saved for the first backward pass, without parameters
        self.parameters = 0  # numbers in all of them
        self.held: dict[str, int] = {}  # bytes by kind in this process; empty until the end
        self.float32: dict[str, int] = {}  # what float32 would take
        self.sent = self.float32_sent = 0.0  # bytes of gradients per step, and what float32 would send
        self.loss: Tensor | None = None  # of the last step
        self.nonfinite: str | None = None  # first parameter whose gradient was not finite, if that stopped the run
        self.validated: int | None = None  # step of the last validation
        self.at_validation: dict[str, float] = {}  # what had been logged by its end

    @property
    def step_ms(self) -> dict[str, float]:
        """Time of an optimizer step: all batches it takes together, or its share of a batch that makes several."""
        timed = self._seconds or self._watched[1:]  # the monitor may look at every batch of a short run
        return deciles([1e3 * seconds for seconds in timed])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock; at the first batch, watch what autograd saves."""
        if self._step is None:
            self._step, look = trainer.global_step, trainer.global_step // self._untimed
            self._looks, self._looked = look, look > self._looks
        if not self._begun:
            self._begun = True
            self.examples = examples_in(batch, trainer.train_dataloader)
            self._saved = _Saved(pl_module)
            self._saved.__enter__()
        wait_for(trainer.strategy.root_device)
        self._start = time.perf_counter()

    def on_before_backward(self, trainer: Trainer, *args: Any) -> None:
        """All is saved now, by autograd or in codes by the plugin."""
        if self._saved is not None:
            self._saved.__exit__()
            kept = watched(trainer).kept
            self.activations = sum(self._saved.rest.values()) + (0 if kept is None else kept.stored + kept.left)
            self._saved = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hook, which would outlive the run, and find what refused an update."""
        self.on_before_backward(trainer)
        if isinstance(exception, NonFiniteGradientError):
            grads = ((name, param.grad) for name, param in pl_module.named_parameters())
            bad = (name for name, grad in grads if grad is not None and not bool(grad.isfinite().all()))
            self.nonfinite = next(bad, None)

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        """Count the gradients: the most of several optimizers or batches."""
        if self._looked:
            self._gradients = max(self._gradients, memory.gradients(watched(trainer).module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Stop the clock."""
        wait_for(trainer.strategy.root_device)
        self._elapsed += time.perf_counter() - self._start
        self.on_before_backward(trainer)  # for a module that never calls it
        assert self._step is not None
        if made := trainer.global_step - self._step:
            (self._watched if self._looked else self._seconds).append(self._elapsed / made)
            self._step, self._elapsed = None, 0.0
        self.loss = outputs.get("loss") if isinstance(outputs, dict) else None

    def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
        """Note when, and what is logged: training may log the same names later. The sanity check is at step 0."""
        self.validated, self.at_validation = trainer.global_step, logged(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count weights and state while the optimizer is there, and what has been sent."""
        run = watched(trainer)
        report = memory.report(run.module, run.optimizers)
        kinds = held(report, self._gradients)
        self.held = kinds.ours._replace(activations=self.activations)._asdict()
        self.float32 = kinds.float32._asdict()
        del self.float32["activations"]  # counted in a run of its own
        self.parameters = report.elements
        if trainer.world_size > 1:
            trainable = sum(param.numel() for param in pl_module.parameters() if param.requires_grad)
            floats = 2 * (trainer.world_size - 1) / trainer.world_size * 4 * trainable
            self.float32_sent = run.traffic.get("float32_bytes_per_step", floats)
            self.sent = run.traffic.get("bytes_sent_per_step", floats)


def logged(trainer: Trainer) -> dict[str, float]:
    """The numbers that the module logged last, by name."""
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if isinstance(value, Tensor) and value.numel() == 1
    }


def examples_in(batch: Any, loader: Any) -> int:
    """How many examples a batch holds, by the ``batch_size`` of the loader or its batch sampler.

    Else the one length of a tensor, or of a tuple, list or dict of tensors; 0 (unknown) for anything else, because a
    graph has many rows.
    """
    for says in (loader, getattr(loader, "batch_sampler", None)):
        if isinstance(size := getattr(says, "batch_size", None), int):
            return size
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    lengths = {len(part) if isinstance(part, Tensor) and part.dim() else 0 for part in parts}
    return lengths.pop() if len(lengths) == 1 else 0


def deciles(numbers: Sequence[float]) -> dict[str, float]:
    """``median``, and the first and last decile as ``fast`` and ``slow``; empty for no numbers."""
    if not numbers:
        return {}
    tenths = statistics.quantiles(numbers, n=10, method="inclusive") if len(numbers) > 1 else [numbers[0]]
    return {"median": statistics.median(numbers), "fast": tenths[0], "slow": tenths[-1]}


class _Saved(saved_tensors_hooks):
    """Bytes that autograd saves, by storage; weights aside, and copies of them, as autocast makes them."""

    def __init__(self, module: LightningModule) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        floats = [param for param in module.parameters() if type(param) is nn.Parameter]
        self._own = {param.untyped_storage().data_ptr() for param in floats}
        self.rest: dict[int, int] = {}

    def _pack(self, tensor: Tensor) -> Tensor:
        with outside_overrides():
            if type(tensor) is Tensor:  # fixed-point weights are of another type
                address = tensor.untyped_storage().data_ptr()
                if address not in self._own and not is_weight(tensor):
                    self.rest[address] = max(self.rest.get(address, 0), tensor.nbytes)
        return tensor
