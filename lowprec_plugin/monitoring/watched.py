"""What of a Trainer there is to look at, whichever plugin it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import nn
from torch.optim import Optimizer

from lowprec_plugin.activations.packed import KeptBytes
from lowprec_plugin.compat.compiling import is_compiled
from lowprec_plugin.compat.lightning import to_be_compiled_again
from lowprec_plugin.deepspeed import AdoptedEngine, FixedPointDeepSpeedPrecision
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.optim.step import FixedPointStep
from lowprec_plugin.plugin import FixedPointPrecision
from lowprec_plugin.telemetry import predicted
from lowprec_plugin.telemetry.storage_table import Row, describe

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@dataclass(frozen=True)
class Watched:
    """One process's part in a run.

    Attributes:
        module: whose parameters are what is stored: under ZeRO the partitions of the master weights.
        optimizers: of these.
        format, keep_float: as the plugin was told to store the weights; without one ``None``.
        kept_in_float: parameters that were left in float, and why.
        traffic: what its wire reports; empty where gradients do not travel in fixed-point.
        kept: what has been kept of activations so far; ``None`` where they are not stored narrow.
        skipped_steps: so far.
        ramping: whether words are widened when updates are lost.
        adopted: ZeRO's engine, which holds a copy of the weights beside; ``None`` without ZeRO.
        gradient_word_length: as the plugin was told to keep gradients.
    """

    module: nn.Module
    optimizers: Sequence[Optimizer]
    format: FixedPointFormat | None = None
    keep_float: Sequence[str] = ()
    kept_in_float: Mapping[str, str] = field(default_factory=dict)
    traffic: Mapping[str, float] = field(default_factory=dict)
    kept: KeptBytes | None = None
    skipped_steps: int = 0
    ramping: bool = False
    adopted: AdoptedEngine | None = None
    gradient_word_length: int | Literal["release"] | None = None

    @property
    def fixed(self) -> list[FixedPointStep]:
        """The optimizers that update fixed-point parameters."""
        return [optimizer for optimizer in self.optimizers if isinstance(optimizer, FixedPointStep)]

    @property
    def rows(self) -> list[Row]:
        """What is stored how."""
        return describe(self.module, self.optimizers) if self.adopted is None else self.adopted.rows

    @property
    def beside(self) -> Row | None:
        """ZeRO's own copy of the weights."""
        return self.rows[-1] if self.adopted is not None and self.adopted.stage > 0 else None

    @property
    def can_be_followed(self) -> bool:
        """Whether its operations can be looked at.

        Not where some of it is compiled, which would run otherwise then, nor under DeepSpeed, whose engine holds more.
        """
        if any(is_compiled(part) or to_be_compiled_again(part) for part in self.module.modules()):
            return False
        return self.adopted is None and all(isinstance(each, Optimizer) for each in self.optimizers)

    @property
    def planned(self) -> int | None:
        """Bytes of weights, state, gradients and buffers; ``None`` where there is no plan."""
        if self.adopted is not None:
            return None
        return predicted(self.module, self.optimizers, self.format, self.keep_float, self.gradient_word_length)


def watched(trainer: Trainer) -> Watched:
    """What ``trainer`` trains, as it stands."""
    plugin, module, optimizers = trainer.precision_plugin, trainer.lightning_module, trainer.optimizers
    if isinstance(plugin, FixedPointPrecision):
        return Watched(
            module, optimizers, plugin.format, plugin.options.keep_float, plugin.kept_in_float,
            {} if plugin.wire is None else plugin.wire.report(),
            None if plugin.inside is None or plugin.inside.kept is None else plugin.inside.kept.bytes,
            plugin.skipped_steps, plugin.ramping is not None,
            gradient_word_length=plugin.options.gradient_word_length,
        )  # fmt: skip
    if isinstance(plugin, FixedPointDeepSpeedPrecision) and plugin.adopted is not None:
        adopted = plugin.adopted
        return Watched(
            module if adopted.stage == 0 else nn.ParameterDict({each.label: each for each in adopted.partitions}),
            [adopted.optimizer], plugin.format,
            traffic={} if adopted.wire is None else adopted.wire.report(), skipped_steps=plugin.skipped_steps,
            adopted=adopted,
        )  # fmt: skip
    return Watched(module, optimizers)
