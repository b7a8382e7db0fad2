"""The Lightning precision plugin: the one flag."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lowprec_plugin.activations.emulation import Emulation
from lowprec_plugin.comm import DDPState, FSDPState
from lowprec_plugin.comm.handshake import shake_hands
from lowprec_plugin.compat.bases import Precision, serve
from lowprec_plugin.compat.lightning import BeforeUpdate, is_fitting
from lowprec_plugin.compute_dtype import ComputeDtype
from lowprec_plugin.optim import StepSettings, adopt, widen_
from lowprec_plugin.optim.gradients import GradientDtype, GradientWordLength
from lowprec_plugin.optim.options import PluginOptions, of_options
from lowprec_plugin.optim.params import params_of
from lowprec_plugin.optim.quantize import quantize_
from lowprec_plugin.optim.step import FixedPointStep
from lowprec_plugin.plugin.activations import Inside
from lowprec_plugin.plugin.averages import fit_averages_, hold_averages_, said_of_averages
from lowprec_plugin.plugin.gradients import connect_wire, prepare_gradients, say_traffic
from lowprec_plugin.plugin.leaving import leave_float_, log_graphs_in_float
from lowprec_plugin.plugin.nonfinite import Aftermath
from lowprec_plugin.plugin.ramp import Ramping, wire_word_length
from lowprec_plugin.plugin.resuming import Resumes, write_whole
from lowprec_plugin.plugin.strategies import ELSEWHERE, UNDER_FABRIC, check_strategy, trainer_of
from lowprec_plugin.ramp import WordLengthRamp
from lowprec_plugin.telemetry.storage_table import as_text, describe
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.dtensor import fixed_part
from lowprec_plugin.tensor.widen import widened
from lowprec_plugin.version import __version__


class FixedPointPrecision(Resumes, BeforeUpdate, Precision):
    """Store weights and optimizer state in fixed-point, with stochastic rounding on every update.

    ::

        Trainer(plugins=FixedPointPrecision())

    Nothing else changes: modules, optimizers, schedulers, callbacks and checkpoints stay the user's own. No float
    tensor of a parameter's size outlives the operation that needs it.

    Args:
        word_length: bits of a weight, 2 to 24.
        fraction_length: bits behind the radix point, the same for every weight (``<IL,FL>`` of Gupta et al. 2015);
            ``None``: every block of weights has a radix point of its own. State has so in any case, unless it is given
            a ``state_fraction_length``: a point that suits the weights says nothing of the gradients' scale.
        state_word_length: bits of optimizer state; ``None``: as the weights.
        state_fraction_length: bits behind the radix point of all state, as hardware may have it; ``None``: see above.
        comm_word_length: bits of a gradient between processes: 4, 8, 12 or 16; ``"auto"``: 16 under DDP, unless the
            strategy has a ``ddp_comm_hook`` of the user's (which Lightning registers on CUDA only: elsewhere
            gradients are then floats); ``None``: gradients travel as they are.
        comm_error_feedback: keep what each process's rounding of gradients lost, in 8 bits per parameter, and add it
            to the next gradient. For 8 and 4 bits.
        rounding: ``"stochastic"`` or ``"nearest"``.
        block_size: consecutive weights that share a radix point: a power of two, 16 to 1024.
        compute_dtype: what operations see: ``torch.float32``, and float64 of what is float64 in the module;
            ``torch.bfloat16`` or ``torch.float64`` (parameters, buffers and inputs appear so); or ``"bf16-mixed"``
            (autocast). Their names as text do as well.
        keep_float: parameters to leave alone: names or shell patterns such as ``"head.*"``.
        ramp: widens the words while training: see :class:`WordLengthRamp`. State follows unless ``state_word_length``
            pins it, and gradients between processes do with ``comm_word_length="auto"``.
        emulation: round layer outputs and back-propagated errors too, as fixed-point hardware would: see
            :class:`Emulation`. Needs ``compute_dtype=torch.float32``.
        activation_word_length: bits of the activations that are kept for the backward pass; ``None``: floats.
        gradient_word_length: bits of a gradient from when autograd has it until the step, 16 or 8; ``None``: floats.
            Micro-batches are added up in it, and clipping reads it: see :mod:`lowprec_plugin.optim.gradients`.
            ``"release"``: none is kept, for a large parameter is updated inside the backward pass. On one device or
            under DDP, with automatic optimization, without accumulation, clipping and ``nonfinite="skip"``, and with no
            ramp but one with a schedule: see :mod:`lowprec_plugin.optim.release`.
        gradient_dtype: of a stored parameter's gradient, ``torch.bfloat16`` or ``torch.float16`` or their names as
            text, to which it is rounded to nearest as soon as autograd has it; ``None``: the dtype that operations see.
            The plain alternative to ``gradient_word_length``, which it takes the place of. bfloat16 has 8 significant
            bits, and with accumulation every micro-batch's sum is rounded again; in float16 a gradient of 65,520 or
            more is infinite, and refused, and one below 3e-8 is lost. Under DDP it takes the plugin's wire.
        nonfinite: on a NaN or infinite gradient ``"raise"``, or ``"skip"`` the step and count it.
        leave_float: once the Trainer is done (with a fit, and with a test or the like), turn the module's parameters
            and its optimizers' state into ordinary floats: see :func:`lowprec_plugin.optim.to_float_`.
        seed: keys the random bits of the rounding.

    Raises:
        ValueError: for a value outside its limits.
    """

    comm_word_length, comm_error_feedback = of_options("comm_word_length"), of_options("comm_error_feedback")
    rounding, keep_float = of_options("rounding"), of_options("keep_float")
    leave_float, seed = of_options("leave_float"), of_options("seed")

    def __init__(
        self,
        word_length: int = 16,
        fraction_length: int | None = None,
        *,
        state_word_length: int | None = None,
        state_fraction_length: int | None = None,
        comm_word_length: int | Literal["auto"] | None = "auto",
        comm_error_feedback: bool = False,
        rounding: Literal["stochastic", "nearest"] = "stochastic",
        block_size: int = 256,
        compute_dtype: ComputeDtype = torch.float32,
        keep_float: str | Iterable[str] = (),
        ramp: WordLengthRamp | None = None,
        emulation: Emulation | None = None,
        activation_word_length: int | None = None,
        gradient_word_length: GradientWordLength | None = None,
        gradient_dtype: GradientDtype | None = None,
        nonfinite: Literal["raise", "skip"] = "raise",
        leave_float: bool = False,
        seed: int = 0,
    ) -> None:
        #: What was asked for.
        self.options = options = PluginOptions.of(locals())
        self.format = options.format
        #: The ramp at work: what it has widened so far is its ``history``. ``None`` without one.
        self.ramping = None if options.ramp is None else Ramping(options.ramp, self.format)
        #: How gradients travel, and what has travelled: a :class:`lowprec_plugin.comm.DDPState` while training under
        #: DDP, a :class:`lowprec_plugin.comm.FSDPState` under FSDP2, else ``None``.
        self.wire: DDPState | FSDPState | None = None
        self._computing = options.computing
        # What Lightning and its callbacks read: the arithmetic, which is float, not the storage.
        self.precision = self._computing.precision
        #: Emulation and kept activations at work, with what they counted; ``None`` without either.
        self.inside = self._make_inside(0, 0)
        self.kept_in_float: dict[str, str] = {}  #: parameters that were kept in float or left as they are, and why
        self._network: nn.Module | None = None
        self._device_type = "cpu"
        self._optimizers: list[FixedPointStep] = []
        self._stepping: list[StepSettings] = []  # of the optimizers, which may have left their classes since
        self._left: dict[str, Any] | None = None  # the state with which floats were left
        self._said_traffic = self._fitting = False
        self._aftermath = Aftermath()
        self._wire_before: DDPState | FSDPState | None = None

    def _make_inside(self, rank: int, step: int) -> Inside | None:
        emulation, kept = self.options.emulation, self.options.activation_word_length
        if emulation is None and kept is None:
            return None
        inside = Inside(emulation, kept, rounding=self.options.rounding, seed=self.options.seed, rank=rank)
        inside.step = step
        return inside

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps skipped for a NaN or infinite gradient (``nonfinite="skip"``)."""
        return sum(each.skipped_steps for each in self._stepping)

    @property
    def saturated(self) -> int:
        """Numbers that were out of their format's range when updates were rounded, so far."""
        return sum(each.saturated for each in self._stepping)

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Swap the parameters of ``module`` for fixed-point ones, in place. Under DeepSpeed a ``ValueError``."""
        check_strategy(module, deepspeed=False)
        if self.ramping is not None:
            self.format = self.ramping.format_to_resume(module, self.format)
        self.kept_in_float = quantize_(
            module,
            self.format,
            rounding=self.options.rounding,
            keep_float=self.options.keep_float,
            dtype=self._computing.seen(module),
            seed=self.options.seed,
            gradient_word_length=self.options.gradient_word_length,
            gradient_dtype=self.options.gradient_dtype,
        )
        hold_averages_(module, self.format, self.options, self._computing)
        prepare_gradients(module, self.options)
        if self._computing.dtype != torch.float32:  # after the weights, whose values need not be rounded twice
            module.to(self._computing.dtype)
        return module

    def connect(
        self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]
    ) -> tuple[nn.Module, list[Optimizer], list[Any]]:
        """Adopt the user's optimizers, and log what is stored how.

        Raises:
            ValueError: on every rank alike, if the ranks' plugins were made with other arguments.
        """
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        serve(self, inner)
        trainer = trainer_of(inner)
        self._fitting = trainer is None or is_fitting(trainer)
        between_processes = self._fitting and dist.is_initialized() and dist.get_world_size() > 1
        if between_processes:  # first of all: what only one rank refuses, the others would wait for
            shake_hands(self.terms(), None)
        if self._fitting and self.ramping is not None:
            self.ramping.begin(inner)
        write_whole(inner)
        log_graphs_in_float(inner)
        self._device_type = next((param.device.type for param in model.parameters()), "cpu")
        for optimizer in optimizers:
            adopt(optimizer, StepSettings.of(self.options))
        self._optimizers = [each for each in optimizers if isinstance(each, FixedPointStep)]
        self._stepping, self._left = [each.fixed_point for each in self._optimizers], None
        before, self._said_traffic = self.wire or self._wire_before, False  # of a fit before
        sends = between_processes and bool(optimizers)
        self.wire, said = connect_wire(model, self.options, self._auto_wire(), before) if sends else (None, "")
        self._wire_before = before if self.wire is None else None  # it holds its module's parameters
        self._network = inner
        if self.inside is not None:
            self.inside = self._make_inside(dist.get_rank() if dist.is_initialized() else 0, self.inside.step)
        inside = "" if self.inside is None else f"\n{self.inside}"
        averages = said_of_averages(inner)
        shard = ", of shards those of the first rank" if isinstance(self.wire, FSDPState) else ""
        rank_zero_info(
            f"{self!r}{shard}\n{as_text(describe(model, optimizers), self.kept_in_float, said)}{inside}{averages}"
        )
        return model, optimizers, lr_schedulers

    def terms(self) -> dict[str, Any]:
        """What every rank's plugin must have alike, by name."""
        return {"package version": __version__, "weights": str(self.format), **self.options.terms()}

    def _auto_wire(self) -> int:
        return 16 if self.ramping is None else wire_word_length(self.format.word_length)

    def before_update(self, module: Any, optimizer: Any) -> None:
        """Widen words if the ramp says so."""
        if not self._releases:  # it came before the backward pass, in which the update has been made
            self._ramp(module, optimizer)

    @property
    def _releases(self) -> bool:
        return self.options.gradient_word_length == "release"

    def _ramp(self, module: Any, optimizer: Any) -> None:
        if self.ramping is not None:
            wanted = self.ramping.before_update(module.trainer, optimizer, self.format.word_length)
            if wanted is not None:
                self._widen(module, wanted)
            module.log("word_length", float(self.format.word_length), prog_bar=True)

    def _widen(self, module: nn.Module, word_length: int) -> None:
        widen_(module, self._optimizers, word_length)
        self.format = widened(self.format, word_length)
        fit_averages_(module, self.format)
        self._follow_with_wire()

    def _follow_with_wire(self) -> None:
        if isinstance(self.wire, DDPState) and self.options.comm_word_length == "auto":
            self.wire.word_length = self._auto_wire()

    def optimizer_step(self, optimizer: Any, model: Any, closure: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Run the update; after the first one, say what crossed the network.

        Raises:
            NonFiniteGradientError: if it is refused, with what was found out about it.
        """
        if self._releases:
            self._ramp(model, optimizer)
        step = partial(super().optimizer_step, optimizer, model, closure, **kwargs)
        again = None if self._releases else closure  # which would update parameters once more
        result = self._aftermath.after(step, model, optimizer, again, lambda: self.skipped_steps)
        if self.ramping is not None:
            self.ramping.after_update(model.trainer, result)
        if self.wire is not None and not self._said_traffic and self.wire.step > 0:
            self._said_traffic = True
            say_traffic(self.wire)
        return result

    def teardown(self) -> None:
        """The Trainer is done with the module: with ``leave_float``, leave it and its optimizers in ordinary floats."""
        if self.options.leave_float and self._network is not None and self._left is None:
            state = self.state_dict()
            if leave_float_(self._network, self._optimizers):
                self._optimizers, self._left = [], state

    def _params(self) -> list[FixedPointTensor]:
        parts = (fixed_part(param) for optimizer in self._optimizers for param in params_of(optimizer))
        return [part for part in parts if part is not None]

    def __repr__(self) -> str:
        options, bits = self.options, self.options.state_word_length or self.format.word_length
        return (
            f"{type(self).__name__}(weights {self.format}, state {bits} bits, {options.rounding} rounding, "
            f"computing in {self._computing}, seed {options.seed})"
        )

    def __str__(self) -> str:
        # What strategies that insist on a precision of their own (FSDP1, XLA) say they found.
        return f"{self!r}. {ELSEWHERE}"

    def tensor_init_context(self) -> AbstractContextManager[None]:
        """The dtype in which user code creates tensors."""
        return self._computing.creation()

    def module_init_context(self) -> AbstractContextManager[None]:
        """The dtype in which modules are made: float32, so that a checkpoint's weights come through exactly."""
        return nullcontext()

    def forward_context(self) -> AbstractContextManager[None]:
        """Around every forward: autocast, or the compute dtype as default."""
        return self._computing.forward(self._device_type)

    @contextmanager
    def train_step_context(self) -> Generator[None, None, None]:
        """Around a training step's forward."""
        with self.forward_context(), self._within(training=True):
            yield

    @contextmanager
    def _evaluation_context(self) -> Generator[None, None, None]:
        if self.ramping is not None:
            self.ramping.validated()
        with self.forward_context(), self._within(training=False):
            yield

    val_step_context = test_step_context = predict_step_context = _evaluation_context

    def _within(self, *, training: bool) -> AbstractContextManager[None]:
        if self.inside is None or self._network is None:
            return nullcontext()
        return self.inside.training(self._network) if training else self.inside.evaluating(self._network)

    def backward(self, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass; what it computes again (activation checkpointing) is emulated again."""
        with nullcontext() if self.inside is None else self.inside.backward():
            super().backward(*args, **kwargs)

    def convert_input(self, data: Any) -> Any:
        """Cast floating-point inputs to the compute dtype."""
        return self._computing.inputs(data)

    def convert_output(self, data: Any) -> Any:
        """Refuse Fabric, which accepts any Precision: only it calls this, after each forward pass.

        Raises:
            ValueError: always. Fabric does not hand its optimizers to a precision plugin, and so they are not adopted.
        """
        raise ValueError(UNDER_FABRIC)
