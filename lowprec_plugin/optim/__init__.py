"""Optimizers that update fixed-point parameters, with the arguments of ``torch.optim``; no Lightning needed.

::

    module = MyModel()
    optim.quantize_(module, "fixed16")
    optimizer = optim.AdamW(module.parameters(), lr=1e-3)

:func:`adopt` turns an existing ``torch.optim`` optimizer into one.
"""

from lowprec_plugin.optim import optimizers
from lowprec_plugin.optim.adopt import adopt
from lowprec_plugin.optim.finite import NonFiniteGradientError
from lowprec_plugin.optim.optimizers import *  # noqa: F403  (the classes of its __all__)
from lowprec_plugin.optim.quantize import quantize_
from lowprec_plugin.optim.settings import StepSettings
from lowprec_plugin.optim.to_float import float_state_dict, plain_optimizer_state
from lowprec_plugin.optim.unquantize import to_float_
from lowprec_plugin.optim.widen import widen_

__all__ = [
    "NonFiniteGradientError",
    "StepSettings",
    "adopt",
    "float_state_dict",
    "plain_optimizer_state",
    "quantize_",
    "to_float_",
    "widen_",
]
__all__ += optimizers.__all__
