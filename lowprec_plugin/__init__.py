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
from lowprec_plugin.version import __version__

__all__ = ["FixedPointFormat", "FixedPointPrecision", "FixedPointTensor", "__version__", "memory", "optim"]
