"""Master weights and optimizer state of DeepSpeed's ZeRO in fixed-point.

With plain DeepSpeed::

    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)
    adopt_engine(engine)

With Lightning::

    Trainer(strategy=DeepSpeedStrategy(stage=2), plugins=FixedPointDeepSpeedPrecision())

DeepSpeed itself is imported by neither: an engine brings it along.
"""

from typing import TYPE_CHECKING, Any

from lowprec_plugin.deepspeed.adopt import AdoptedEngine, adopt_engine
from lowprec_plugin.deepspeed.gradients import ZeroWire

if TYPE_CHECKING:
    from lowprec_plugin.deepspeed.precision import FixedPointDeepSpeedPrecision

__all__ = ["AdoptedEngine", "FixedPointDeepSpeedPrecision", "ZeroWire", "adopt_engine"]


def __getattr__(name: str) -> Any:
    if name == "FixedPointDeepSpeedPrecision":  # imports Lightning, which plain DeepSpeed does without
        from lowprec_plugin.deepspeed.precision import FixedPointDeepSpeedPrecision

        return FixedPointDeepSpeedPrecision
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
