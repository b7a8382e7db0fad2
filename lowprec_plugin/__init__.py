"""Train neural networks in 16-bit fixed-point: a precision plugin for Lightning.

::

    from lightning.pytorch import Trainer
    from lowprec_plugin import FixedPointPrecision

    trainer = Trainer(plugins=FixedPointPrecision())

``pytorch_lightning`` does as well as ``lightning.pytorch``. Neither is imported here: a user of plain PyTorch need
not wait for one, nor a user of one for the other.
"""

from typing import TYPE_CHECKING, Any

from lowprec_plugin import comm, former_names, memory, optim
from lowprec_plugin.activations.emulation import Emulation, emulate
from lowprec_plugin.activations.packed import keep_activations
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.ramp import WordLengthRamp
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.version import __version__

if TYPE_CHECKING:
    from lowprec_plugin.monitoring import FixedPointMonitor
    from lowprec_plugin.plugin import FixedPointPrecision

former_names.keep()

__all__ = [
    "Emulation", "FixedPointFormat", "FixedPointMonitor", "FixedPointPrecision", "FixedPointTensor", "WordLengthRamp",
    "__version__", "comm", "emulate", "keep_activations", "memory", "optim",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name == "FixedPointPrecision":
        from lowprec_plugin.plugin import FixedPointPrecision

        return FixedPointPrecision
    if name == "FixedPointMonitor":
        from lowprec_plugin.monitoring import FixedPointMonitor

        return FixedPointMonitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
