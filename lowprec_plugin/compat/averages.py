"""Averages of weights that Lightning's ``WeightAveraging`` and ``StochasticWeightAveraging`` keep.

Both copy the module in their ``setup``, before a precision plugin converts it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from lowprec_plugin.compat.lightning import host_of
from lowprec_plugin.compat.lightnings import is_a, lightning_of
from lowprec_plugin.compat.lookup import look_up

_FEATURE = "to hold averages of weights in codes"


class Average(NamedTuple):
    """An average, and who keeps it.

    Attributes:
        callback: a ``WeightAveraging`` or ``StochasticWeightAveraging`` of either Lightning.
        module: a copy of the module that is trained, with the average's numbers.
    """

    callback: Any
    module: nn.Module

    @property
    def is_swapped(self) -> bool:
        """Whether the callback exchanges weights and average around a validation, as Lightning has it."""
        if not is_a(self.callback, "callbacks.WeightAveraging"):
            return False
        lightning = lightning_of(self.callback)
        assert lightning is not None
        kinds = type(self.callback), lightning.get("callbacks.WeightAveraging")
        users, lightnings = (
            look_up(kind, "_swap_models", host=host_of(self.callback), feature=_FEATURE) for kind in kinds
        )
        return bool(users is lightnings)

    def swap_by(self, swap: Callable[[nn.Module], None]) -> None:
        """Have ``swap(module)`` exchange the weights of ``module`` and the average."""
        self.callback._swap_models = swap

    @property
    def updater(self) -> Any:
        """What has ``update_parameters``, which takes the module whose weights go into the average."""
        kept = _kept_by(self.callback)
        return kept if hasattr(kept, "update_parameters") else self.callback

    def saved_in(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The average's ``state_dict`` in a checkpoint; ``None`` if it holds none."""
        if is_a(self.callback, "callbacks.WeightAveraging"):
            return checkpoint["state_dict"] if "averaging_state" in checkpoint else None
        states = checkpoint.get("callbacks", {})
        return states.get(self.callback.state_key, {}).get("average_model_state")  # type: ignore[no-any-return]


def averages_of(trainer: Any) -> list[Average]:
    """The averages that callbacks of ``trainer`` keep now.

    Raises:
        ValueError: if this Lightning hides them elsewhere.
    """
    found = []
    for callback in trainer.callbacks:
        if is_a(callback, "callbacks.WeightAveraging"):
            kept = _kept_by(callback)
            found += [] if kept is None else [Average(callback, kept.module)]
        elif is_a(callback, "callbacks.StochasticWeightAveraging"):
            kept = _kept_by(callback)
            found += [] if kept is None else [Average(callback, kept)]
    return found


def _kept_by(callback: Any) -> Any:
    return look_up(callback, "_average_model", host=host_of(callback), feature=_FEATURE)
