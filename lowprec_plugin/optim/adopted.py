"""What is known of an adopted optimizer, whose own methods are still those of its class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowprec_plugin.optim.settings import StepSettings

if TYPE_CHECKING:
    from torch.optim import Optimizer as _Base
else:  # of the layout of any optimizer, so that an object may become one of such a class, and be as it was again
    _Base = object


class Adopted(_Base):
    """An optimizer that updates fixed-point parameters.

    Attributes:
        fixed_point: how, and what came of it.
        float_class: the class that it had before, or would have for float parameters.
        releasing: what updates parameters in the backward pass (:mod:`.release`); ``None``: nothing does.
    """

    fixed_point: StepSettings
    releasing: Any = None
    float_class: type[torch.optim.Optimizer]
