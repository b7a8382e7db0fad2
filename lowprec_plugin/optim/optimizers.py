"""SGD, Adam, AdamW and Lion for fixed-point parameters, with torch.optim's own arguments."""

from __future__ import annotations

from typing import Any

import torch

from lowprec_plugin.compat.optimizers import check_scaling, scale_before_the_step
from lowprec_plugin.optim.lion import FloatLion
from lowprec_plugin.optim.settings import StepSettings
from lowprec_plugin.optim.step import FixedPointStep


class _Ours(FixedPointStep):
    """Takes the settings of the fixed-point step beside the arguments of the float class."""

    def __init__(
        self,
        params: Any,
        *args: Any,
        state_word_length: int | None = None,
        rounding: str = "stochastic",
        nonfinite: str = "raise",
        state_fraction_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        settings = StepSettings(state_word_length, rounding, nonfinite, state_fraction_length)
        self.float_class.__init__(self, params, *args, **kwargs)
        self.fixed_point = settings
        check_scaling(self)
        scale_before_the_step(self)


class SGD(_Ours, torch.optim.SGD):
    """``torch.optim.SGD``; also ``state_word_length``, ``rounding``, ``nonfinite``: see :class:`StepSettings`.

    With momentum also ``state_fraction_length``; note that the buffer is a sum of gradients, not of updates.
    """

    float_class = torch.optim.SGD


class Adam(_Ours, torch.optim.Adam):
    """``torch.optim.Adam``; also ``state_word_length``, ``rounding``, ``nonfinite``: see :class:`StepSettings`.

    The second moment is stored as its square root, the quantity that Adam divides by.
    """

    float_class = torch.optim.Adam


class AdamW(_Ours, torch.optim.AdamW):
    """``torch.optim.AdamW``; also ``state_word_length``, ``rounding``, ``nonfinite``: see :class:`StepSettings`.

    The second moment is stored as its square root, the quantity that Adam divides by.
    """

    float_class = torch.optim.AdamW


class Lion(_Ours, FloatLion):
    """Lion (Chen et al. 2023): the sign of an interpolated momentum, and decoupled weight decay.

    ``Lion(params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, *, maximize=False)``; also ``state_word_length``,
    ``rounding``, ``nonfinite``: see :class:`StepSettings`.
    """

    float_class = FloatLion
