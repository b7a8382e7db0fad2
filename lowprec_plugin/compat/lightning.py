"""The inside of Lightning's trainer, strategies and precision plugins."""

from __future__ import annotations

from typing import Any

from torch import nn

from lowprec_plugin.compat.lightnings import Lightning, imported, in_use, lightning_of
from lowprec_plugin.compat.lookup import LIGHTNING, Host, look_up


def loaded_checkpoint(trainer: Any) -> dict[str, Any]:
    """What ``trainer`` has read of the checkpoint that it resumes or tests; empty without one.

    Raises:
        ValueError: if this Lightning hides it elsewhere; so do all functions here.
    """
    feature = "for a ramp to resume with the words that it had widened"
    connector = look_up(trainer, "_checkpoint_connector", host=host_of(trainer), feature=feature)
    return look_up(connector, "_loaded_checkpoint", host=host_of(trainer), feature=feature) or {}


def comm_hook_of(strategy: Any) -> Any:
    """The ``ddp_comm_hook`` that a ``DDPStrategy`` was given, or ``None``. Lightning registers it on a GPU only."""
    feature = "to leave a ddp_comm_hook of your own in place"
    return look_up(strategy, "_ddp_comm_hook", host=host_of(strategy), feature=feature)


def check_after_closure() -> None:
    """Check that Lightning's ``Precision`` has the hook between gradients and update, where a ramp widens words."""
    feature = "for a ramp to widen words before an update"
    for each in imported():
        look_up(each.get("plugins.precision.Precision"), "_after_closure", host=_host(each), feature=feature)


class BeforeUpdate:
    """Calls a method between gradients and update. For a class that derives from it and then from ``Precision``.

    To be used after :func:`check_after_closure`.
    """

    def before_update(self, module: Any, optimizer: Any) -> None:
        """Gradients of ``module`` are ready, and clipped; the step of ``optimizer`` comes next."""

    def _after_closure(self, model: Any, optimizer: Any) -> None:
        super()._after_closure(model, optimizer)  # type: ignore[misc]
        self.before_update(model, optimizer)


def to_be_compiled_again(module: nn.Module) -> bool:
    """Whether Lightning has unwrapped ``module`` from ``torch.compile``, and compiles what it runs of it."""
    if all(each.__name__ != "LightningModule" for each in type(module).__mro__):
        return False
    feature = "to see whether a module is compiled"
    return look_up(module, "_compiler_ctx", host=host_of(module), feature=feature) is not None


def step_of_logs(trainer: Any) -> int:
    """Where ``LearningRateMonitor`` and ``self.log`` put what they log in this step."""
    feature = "to log figures at the step of other figures"
    loop = trainer.fit_loop.epoch_loop
    return int(look_up(loop, "_batches_that_stepped", host=host_of(trainer), feature=feature))


def name_in(logger: Any, name: str) -> str:
    """``name`` with the prefix that ``logger``, a ``WandbLogger``, puts before all names."""
    prefix = look_up(logger, "_prefix", host=host_of(logger), feature="to name a table as a logger's figures")
    return f"{prefix}{logger.LOGGER_JOIN_CHAR}{name}" if prefix else name


def is_fitting(trainer: Any) -> bool:
    """Whether ``trainer`` was asked to fit, and not to validate, test or predict."""
    return bool(trainer.state.fn == "fit")  # an enumeration of words, in every Lightning


def overrides(thing: Any, method: str) -> bool:
    """Whether ``thing``, a module or a data module, has a ``method`` of its own in place of Lightning's."""
    lightning = lightning_of(thing) or in_use()
    return bool(lightning.get("utilities.model_helpers.is_overridden")(method, thing))


def misconfiguration(trainer: Any, message: str) -> Exception:
    """What ``trainer``'s Lightning raises for arguments that do not go together."""
    lightning = lightning_of(trainer) or in_use()
    error: Exception = lightning.get("utilities.exceptions.MisconfigurationException")(message)
    return error


def logs_graph(logger: Any) -> bool:
    """Whether ``logger`` is a ``TensorBoardLogger``, of Lightning under either name, made with ``log_graph=True``."""
    if all(each.__name__ != "TensorBoardLogger" for each in type(logger).__mro__):
        return False
    return bool(look_up(logger, "_log_graph", host=host_of(logger), feature="to trace a logged graph in floats"))


def host_of(thing: object) -> Host:
    """The Lightning that ``thing`` is of, for messages; the one in use if it is of none."""
    return _host(lightning_of(thing) or in_use())


def _host(lightning: Lightning) -> Host:
    return LIGHTNING._replace(package=lightning.package)
