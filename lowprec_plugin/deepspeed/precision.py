"""The Lightning precision plugin for ``DeepSpeedStrategy``."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn
from torch.optim import Optimizer

from lowprec_plugin.compat.bases import DeepSpeedPrecision, serve
from lowprec_plugin.compat.lightnings import in_use
from lowprec_plugin.deepspeed.adopt import AdoptedEngine, adopt
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.optim.finite import NonFiniteGradientError
from lowprec_plugin.optim.options import RESUMED, PluginOptions, names, of_options
from lowprec_plugin.plugin.nonfinite import Aftermath
from lowprec_plugin.plugin.resuming import LAYOUT, check_resumed, check_saved, say_changed
from lowprec_plugin.plugin.strategies import ELSEWHERE, check_strategy
from lowprec_plugin.text.option_error import Option, OptionError
from lowprec_plugin.version import __version__

EngineDtype = torch.dtype | Literal["float32", "bfloat16", "bf16-mixed"]
#: What Lightning calls each, and turns into DeepSpeed's config.
_PRECISION: dict[Any, Literal["32-true", "bf16-true", "bf16-mixed"]] = {
    torch.float32: "32-true", "float32": "32-true", torch.bfloat16: "bf16-true", "bfloat16": "bf16-true",
    "bf16-mixed": "bf16-mixed",
}  # fmt: skip
#: What a checkpoint says of the options, beside the format.
_SAID = ("state_word_length", "comm_word_length", "rounding", "seed")


class FixedPointDeepSpeedPrecision(DeepSpeedPrecision):
    """Store ZeRO's master weights and optimizer state in fixed-point, with stochastic rounding on every update.

    ::

        Trainer(strategy=DeepSpeedStrategy(stage=2), plugins=FixedPointDeepSpeedPrecision())

    Modules, optimizers, schedulers, callbacks and checkpoints stay the user's own. What is stored where, and what is
    not: see :func:`lowprec_plugin.deepspeed.adopt_engine`, which is called before the first training step.

    Args:
        word_length, fraction_length, block_size: the format of the weights, as in ``FixedPointPrecision``.
        state_word_length: bits of optimizer state; ``None``: as the weights.
        comm_word_length: bits of a gradient between processes: 4, 8, 12 or 16; ``"auto"``: 16; ``None``: as DeepSpeed
            sends them.
        rounding: ``"stochastic"`` or ``"nearest"``.
        compute_dtype: of the engine's own parameters, which it holds beside the codes: ``torch.bfloat16`` (2 bytes per
            parameter), ``"bf16-mixed"`` (the same; modules are made in float32), or ``torch.float32`` (4 bytes).
        nonfinite: on a NaN or infinite gradient DeepSpeed skips the step on every process; ``"raise"`` then stops all
            of them, ``"skip"`` goes on.
        seed: keys the random bits of the rounding.

    Raises:
        ValueError: for a value outside its limits.
    """

    nonfinite = of_options("nonfinite")

    def __init__(
        self,
        word_length: int = 16,
        fraction_length: int | None = None,
        *,
        state_word_length: int | None = None,
        comm_word_length: int | Literal["auto"] | None = "auto",
        rounding: Literal["stochastic", "nearest"] = "stochastic",
        block_size: int = 256,
        compute_dtype: EngineDtype = torch.bfloat16,
        nonfinite: Literal["raise", "skip"] = "raise",
        seed: int = 0,
    ) -> None:
        if not isinstance(compute_dtype, str | torch.dtype) or compute_dtype not in _PRECISION:
            raise OptionError(
                Option.given("compute_dtype", compute_dtype), " is not one of float32, bfloat16, bf16-mixed"
            )
        in_use()  # there has to be a Lightning, whose part of this is made now
        super().__init__(_PRECISION[compute_dtype])
        #: What was asked for.
        self.options = PluginOptions.of(locals())
        self.format = self.options.format
        #: What is stored how, once training has begun.
        self.adopted: AdoptedEngine | None = None
        self._aftermath = Aftermath()
        self._module: Any = None
        self._engine: Any = None

    @property
    def skipped_steps(self) -> int:
        """Steps that the engine skipped for a NaN or infinite gradient."""
        return 0 if self._engine is None else int(self._engine.skipped_steps)

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Cast ``module`` to the compute dtype, in place.

        Raises:
            ValueError: under any other strategy than DeepSpeed's.
        """
        check_strategy(module, deepspeed=True)
        return super().convert_module(module)

    def convert_output(self, data: Any) -> Any:
        """Refuse Fabric, which makes the engine out of this plugin's sight: only it calls this, after a forward pass.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{type(self).__name__} is a plugin of Lightning's Trainer and cannot see Fabric's engine: use a "
            "Trainer, or deepspeed.initialize and lowprec_plugin.deepspeed.adopt_engine(engine)"
        )

    def connect(
        self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]
    ) -> tuple[nn.Module, list[Optimizer], list[Any]]:
        """Note the module; its engine is not made yet."""
        self._module = model
        serve(self, model)
        return super().connect(model, optimizers, lr_schedulers)

    @contextmanager
    def train_step_context(self) -> Generator[None, None, None]:
        """Around every training step: before an engine's first, adopt it.

        Lightning calls no hook between making the engine and this. A checkpoint that it has loaded in between is taken
        up without loss, for floats that came out of a format are exact in it.
        """
        engine = self._module.trainer.model
        if engine is not self._engine:
            self.adopted = adopt(engine, self.options, rank_zero_info)
            self._engine = engine
        with super().train_step_context():
            yield

    def optimizer_step(self, optimizer: Any, model: Any, closure: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Let the engine step.

        Raises:
            NonFiniteGradientError: on every process, if the engine skipped the step and ``nonfinite="raise"``.
        """
        step = partial(self._step_of_engine, optimizer, model, closure, **kwargs)
        # Not to be run again: the engine would count the backward pass as one of its own steps.
        return self._aftermath.after(step, model, optimizer, None, lambda: self.skipped_steps)

    def _step_of_engine(self, optimizer: Any, model: Any, closure: Any, **kwargs: Any) -> Any:
        result = super().optimizer_step(optimizer, model, closure, **kwargs)
        if self.options.nonfinite == "raise" and getattr(self._engine.optimizer, "overflow", False):
            raise NonFiniteGradientError(
                "a gradient holds a NaN or an infinity: the step was refused and nothing was written. Lower the "
                'learning rate or clip gradients; nonfinite="skip" skips such steps'
            )
        return result

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of the plugin, for people and for :meth:`load_state_dict`'s check."""
        return {"version": __version__, "layout": LAYOUT, "format": str(self.format), **self._said()}

    def _said(self) -> dict[str, Any]:
        return {name: getattr(self.options, name) for name in _SAID}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that was damaged after it was written, which torch reads as it is."""
        check_resumed(self._module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the checkpoint's weights and state are exact as this plugin stores them; say what else changed.

        Raises:
            ValueError: if they are not.
        """
        check_saved(state_dict, self.format)
        saved = FixedPointFormat.parse(state_dict["format"])
        bits = state_dict.get("state_word_length") or saved.word_length
        own = self.options.state_word_length or self.format.word_length
        if own < bits:
            raise OptionError(
                f"the checkpoint's optimizer state has {bits} bits, which {own} do not hold exactly: resume with ",
                Option.given("state_word_length", bits),
            )
        resumed = names(PluginOptions, RESUMED)
        say_changed(state_dict, {name: said for name, said in self._said().items() if name in resumed})

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._said().items())
        return f"{type(self).__name__}(weights {self.format}, {options}, computing in {self.precision})"

    def __str__(self) -> str:
        # What strategies that insist on a precision of their own (FSDP1, XLA) say they found.
        return f"{self!r}. {ELSEWHERE}"
