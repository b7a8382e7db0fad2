"""Which strategy a Lightning run uses, and the refusal of those that a precision plugin cannot work under.

FSDP1 and XLA refuse foreign precision plugins themselves, with the plugin's own words (``__str__``) on what to use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from lowprec_plugin.compat.lightnings import is_a

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

#: What takes the place of a plugin under a strategy that it does not work under.
ELSEWHERE = (
    'FixedPointPrecision works on one device, with strategy="ddp", and with ModelParallelStrategy where '
    "configure_model calls fully_shard (FSDP2); lowprec_plugin.deepspeed.FixedPointDeepSpeedPrecision works with "
    "DeepSpeedStrategy"
)
#: What to do under Fabric.
UNDER_FABRIC = (
    "FixedPointPrecision is a plugin of Lightning's Trainer and cannot see Fabric's optimizers. "
    "Under Fabric leave it out, call lowprec_plugin.optim.quantize_(module), and use the optimizers of "
    "lowprec_plugin.optim or optim.adopt(optimizer), before fabric.setup(module, optimizer)"
)


def trainer_of(module: nn.Module | None) -> Trainer | None:
    """The Trainer that has ``module``, or ``None``."""
    try:
        trainer = module.trainer if is_a(module, "LightningModule") else None
    except RuntimeError:  # no Trainer has it
        return None
    return trainer if is_a(trainer, "Trainer") else None  # Fabric has something like one


def check_strategy(module: nn.Module, *, deepspeed: bool) -> None:
    """Refuse DeepSpeed for a plugin that is not made for it, and anything else for one that is.

    Args:
        module: what the plugin is given; passed over if no Trainer has it.
        deepspeed: whether the plugin is made for DeepSpeed.

    Raises:
        ValueError: with the plugin to use.
    """
    trainer = trainer_of(module)
    if trainer is None:
        return
    strategy = trainer.strategy
    if is_a(strategy, "strategies.DeepSpeedStrategy") != deepspeed:
        raise ValueError(f"this precision plugin does not work with {type(strategy).__name__}: {ELSEWHERE}")
