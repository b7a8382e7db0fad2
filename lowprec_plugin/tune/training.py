"""One training of the user's own module and data, as LightningCLI would run it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from lowprec_plugin.compat.bases import Callback
from lowprec_plugin.experiments import Config
from lowprec_plugin.experiments.making import LastBit, instantiate, quietly, rehearse
from lowprec_plugin.optim.finite import NonFiniteGradientError
from lowprec_plugin.text.option_error import Option, OptionError
from lowprec_plugin.tune.records import Judge, Run
from lowprec_plugin.tune.space import Setting

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.cli import LightningCLI


class Watch(Callback):
    """Notes the metric at the end of every epoch, and asks the judge whether to go on."""

    def __init__(self, metric: str, judge: Judge | None) -> None:
        self.metric, self.judge = metric, judge
        self.curve: list[float] = []
        self.stopped: int | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the epoch's validation."""
        if self.metric in trainer.callback_metrics and self.stopped is None:  # min_epochs may hold it up
            self.curve.append(float(trainer.callback_metrics[self.metric]))
            if self.judge is not None and self.judge(len(self.curve), self.curve[-1]):
                self.stopped, trainer.should_stop = len(self.curve), True


def check_processes(config: Config, *, wire: bool) -> None:
    """Refuse strategies that cannot start processes anew for every trial, and a ``wire`` with nobody to send to.

    Raises:
        ValueError: naming the strategy to use.
    """
    with quietly():
        processes = instantiate(config).trainer.world_size
    strategy = str(config["trainer"].get("strategy", "auto"))
    if wire and processes == 1:
        raise ValueError("wire: one process sends nothing: set trainer.strategy='ddp_spawn' and trainer.devices")
    if processes > 1 and "spawn" not in strategy:  # a fork would inherit the threads of the rehearsal
        raise ValueError(
            f"trainer.strategy={strategy!r} with {processes} processes: every trial has to start its own anew: "
            "tune with strategy='ddp_spawn', or with devices=1"
        )


def rehearse_metric(config: Config, metric: str) -> LightningCLI:
    """A rehearsal that also looks for the metric.

    Raises:
        ValueError: if the metric is not among those that the module logs.
    """
    cli = rehearse(config)
    logged = sorted(cli.trainer.callback_metrics)
    if metric not in logged:
        raise OptionError(
            Option.given("metric", metric),
            f" is not logged while fitting; the module logs {', '.join(logged) or 'none'}",
        )
    return cli


def train(
    config: Config, setting: Setting | None, seed: int, metric: str, *, twin: bool = False, judge: Judge | None = None
) -> Run:
    """Run ``config`` to its end, or until the judge stops it; a number that is not finite ends it too.

    Args:
        config: complete, the plugin and the seed included.
        setting, seed: of the record.
        metric: the name that the module logs it by.
        twin: move every weight by a last bit at the start.
        judge: not asked where several processes train.

    Raises:
        ValueError: if the run ends before the metric is logged.
    """
    start = time.perf_counter()
    with quietly():
        watch = Watch(metric, judge)
        cli = instantiate(config, [watch, *([LastBit()] if twin else [])])
        if cli.trainer.world_size > 1:
            watch.judge = None
        try:
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)
            diverged = None
        except NonFiniteGradientError as error:
            diverged = str(error)
        except ProcessRaisedException as error:  # the same, in a process of its own
            if NonFiniteGradientError.__name__ not in str(error):
                raise
            diverged = "a gradient is not finite"
    curve = watch.curve
    if diverged is None and metric not in cli.trainer.callback_metrics:
        raise OptionError(
            Option.given("metric", metric),
            f" is logged in the rehearsal, but not within the {cli.trainer.current_epoch} epochs of a run: validate "
            "more often (trainer.check_val_every_n_epoch), or give more ",
            Option("epochs"),
        )
    value = cli.trainer.callback_metrics.get(metric, torch.tensor(math.nan)).item()
    if diverged is None and not all(map(math.isfinite, [*curve, value])):
        diverged = f"{metric} is not finite"
    curve = [each for each in curve if math.isfinite(each)]  # JSON has no word for the others
    seconds = round(time.perf_counter() - start, 3)
    if watch.stopped is not None or diverged is not None:
        return Run(setting, seed, twin, curve, None, None if diverged else watch.stopped, diverged, seconds)
    return Run(setting, seed, twin, curve, value, seconds=seconds)
