"""The inside of Lightning's trainer, strategies and precision plugins."""

from __future__ import annotations

from typing import Any

from torch import nn

from lowprec_plugin.compat.lookup import LIGHTNING, look_up


def loaded_checkpoint(trainer: Any) -> dict[str, Any]:
    """What ``trainer`` has read of the checkpoint that it resumes or tests; empty without one.

    Raises:
        ValueError: if this Lightning hides it elsewhere; so do all functions here.
    """
    feature = "for a ramp to resume with the words that it had widened"
    connector = look_up(trainer, "_checkpoint_connector", host=LIGHTNING, feature=feature)
    return look_up(connector, "_loaded_checkpoint", host=LIGHTNING, feature=feature) or {}


def comm_hook_of(strategy: Any) -> Any:
    """The ``ddp_comm_hook`` that a ``DDPStrategy`` was given, or ``None``. Lightning registers it on a GPU only."""
    return look_up(strategy, "_ddp_comm_hook", host=LIGHTNING, feature="to leave a ddp_comm_hook of your own in place")


def check_after_closure(precision: type) -> None:
    """Check that Lightning's ``Precision`` has the hook between gradients and update, where a ramp widens words."""
    look_up(precision, "_after_closure", host=LIGHTNING, feature="for a ramp to widen words before an update")


def to_be_compiled_again(module: nn.Module) -> bool:
    """Whether Lightning has unwrapped ``module`` from ``torch.compile``, and compiles what it runs of it."""
    if all(each.__name__ != "LightningModule" for each in type(module).__mro__):
        return False
    feature = "to see whether a module is compiled"
    return look_up(module, "_compiler_ctx", host=LIGHTNING, feature=feature) is not None


def logs_graph(logger: Any) -> bool:
    """Whether ``logger`` is a ``TensorBoardLogger``, of Lightning under either name, made with ``log_graph=True``."""
    if all(each.__name__ != "TensorBoardLogger" for each in type(logger).__mro__):
        return False
    return bool(look_up(logger, "_log_graph", host=LIGHTNING, feature="to trace a logged graph in floats"))
