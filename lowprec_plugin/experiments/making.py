"""Module, data and trainer of a configuration, ready to run among others."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lowprec_plugin.compat.bases import Callback
from lowprec_plugin.compat.lightning import overrides
from lowprec_plugin.compat.lightnings import LIGHTNINGS
from lowprec_plugin.experiments.config import Config, class_path, one_or_more
from lowprec_plugin.experiments.lightnings import lightning_of_config
from lowprec_plugin.experiments.refusals import refused_in_short
from lowprec_plugin.experiments.unlogged import Unlogged
from lowprec_plugin.text.option_error import Option, OptionError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.cli import LightningCLI

#: What such runs leave out: they are not logged, saved or shown unless the caller says so.
_UNSEEN = {
    "logger": {"class_path": "lowprec_plugin.experiments.unlogged.Unlogged"},
    "enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False,
}  # fmt: skip
_UNSEEN_CALLBACKS = ("Checkpoint", "ProgressBar", "ModelSummary", "FixedPointMonitor")
IN_THIS_PROCESS: Config = {"devices": 1, "num_nodes": 1, "strategy": "auto"}


@contextmanager
def quietly() -> Iterator[None]:
    """Without Lightning's advice on loader workers and logging intervals, and its own deprecations: no news here."""
    loggers = [logging.getLogger(name) for each in LIGHTNINGS for name in (each.name, each.fabric)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="(pytorch_)?lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@torch.no_grad()
def perturb_last_bit_(module: torch.nn.Module) -> None:
    """Move every parameter to the next float above it."""
    for param in module.parameters():
        param.copy_(torch.nextafter(param, torch.full_like(param, torch.inf)))


class LastBit(Callback):
    """Moves every weight by a last bit before the first batch: the module's hooks have made or loaded all by then."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Once."""
        if trainer.global_step == batch_idx == 0:
            perturb_last_bit_(pl_module)


def unseen(config: Config) -> list[str]:
    """Classes of the callbacks and loggers of ``config`` that :func:`instantiate` leaves out."""
    callbacks, loggers = (one_or_more(config["trainer"].get(name)) for name in ("callbacks", "logger"))
    left_out = [each for each in callbacks if _is_unseen(each)] + [each for each in loggers if each is not True]
    return [class_path(each).rpartition(".")[2] for each in left_out]


def _is_unseen(callback: Any) -> bool:
    return class_path(callback).endswith(_UNSEEN_CALLBACKS)


def instantiate(config: Config, callbacks: Sequence[Callback] = (), **trainer: Any) -> LightningCLI:
    """Module, data and trainer of ``config``, made as ``lowprec fit`` makes them, without what people look at.

    Args:
        config: complete, the plugin and the seed included.
        callbacks: beside the configuration's own.
        trainer: arguments of the Trainer that take the place of the configuration's.

    Raises:
        ValueError: for a configuration that LightningCLI does not take, or of classes of two Lightnings.
    """
    made_by = lightning_of_config(config).get("cli.LightningCLI")
    config = copy.deepcopy(config)
    kept = [each for each in one_or_more(config["trainer"].get("callbacks")) if not _is_unseen(each)]
    config["trainer"] = {**config["trainer"], **_UNSEEN, **trainer, "callbacks": kept}
    with warnings.catch_warnings():
        # LightningCLI warns where it is given arguments beside a command line, here our own command's.
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        with refused_in_short(config):
            return made_by(  # type: ignore[no-any-return]
                args=config,
                run=False,
                save_config_callback=None,
                trainer_defaults={"callbacks": list(callbacks)},
                parser_kwargs={"exit_on_error": False},
            )


def rehearse(config: Config, callbacks: Sequence[Callback] = ()) -> LightningCLI:
    """Two batches of training and validation, in this process: everything that fails at once fails now.

    Raises:
        ValueError: as :func:`instantiate`, and for a module without data.
    """
    with quietly():
        cli = instantiate(config, callbacks, fast_dev_run=2, **IN_THIS_PROCESS)
        cli.trainer.loggers = [Unlogged()]  # fast_dev_run takes a logger of Lightning's, which has less
        if cli.datamodule is None and not overrides(cli.model, "train_dataloader"):
            raise OptionError(
                Option.given("model", class_path(config["model"])),
                " has no train_dataloader: give the data to train on, ",
                Option("data", "package.DataModule"),
                ", or data: in the configuration",
            )
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return cli
