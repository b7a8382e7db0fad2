"""Train neural networks in 16-bit fixed-point: a precision plugin for Lightning.

::

    from lightning.pytorch import Trainer
    from lowprec_plugin import FixedPointPrecision

    trainer = Trainer(plugins=FixedPointPrecision())
"""

from lowprec_plugin import memory, optim
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.plugin import FixedPointPrecision
from lowprec_plugin.tensor import FixedPointTensor

__version__ = "0.1.0"

__all__ = ["FixedPointFormat", "FixedPointPrecision", "FixedPointTensor", "memory", "optim"]
