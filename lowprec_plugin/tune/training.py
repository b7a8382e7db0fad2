"""One training of the user's own module and data, as LightningCLI would run it."""

from __future__ import annotations

import copy
import math
import time
import warnings
from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from torch.multiprocessing.spawn import ProcessRaisedException

from lowprec_plugin.optim.step import NonFiniteGradientError
from lowprec_plugin.poc.run import perturb_last_bit_, quietly
from lowprec_plugin.tune.records import Judge, Run
from lowprec_plugin.tune.space import Setting

Config = dict[str, Any]

PLUGIN = "lowprec_plugin.FixedPointPrecision"
#: The proof of concept's digits: no download, seconds per run.
DIGITS: Config = {
    "trainer": {"max_epochs": 15, "accelerator": "cpu"},
    "model": {
        "class_path": "lowprec_plugin.tasks.Classifier",
        "init_args": {"network": {"class_path": "lowprec_plugin.tasks.MLP"}, "lr": 0.02},
    },
    "data": {"class_path": "lowprec_plugin.tasks.DigitsDataModule"},
}
#: What trials leave out: they are not logged, saved or shown.
_UNSEEN = {
    "logger": {"class_path": "lightning.pytorch.loggers.logger.DummyLogger"},
    "enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False,
}  # fmt: skip
_UNSEEN_CALLBACKS = ("Checkpoint", "ProgressBar", "ModelSummary")
_IN_THIS_PROCESS: Config = {"devices": 1, "num_nodes": 1, "strategy": "auto"}


def read_config(config: str | None, model: str | None, data: str | None, epochs: int | None) -> Config:
    """The configuration to tune: a LightningCLI YAML, or classes by import path, or the digits.

    Raises:
        ValueError: if it is not there, is no mapping, or has what a search cannot keep.
    """
    if config is None:
        if data is not None and model is None:
            raise ValueError(f"data={data!r} needs a module to train: give model=, or a config with both")
        found = {"trainer": {}, "model": {"class_path": model}} if model else copy.deepcopy(DIGITS)
    else:
        try:
            found = yaml.safe_load(Path(config).read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"config={config!r} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"config={config!r} is not a LightningCLI configuration: a mapping with trainer and model")
        if model is not None:
            found["model"] = {"class_path": model}
    if data is not None:
        found["data"] = {"class_path": data}
    trainer = found["trainer"] = dict(found.get("trainer") or {})
    if epochs is not None:
        trainer["max_epochs"] = epochs
    if found.pop("ckpt_path", None) is not None:
        raise ValueError("ckpt_path: trials train from the start: leave it out")
    found.pop("seed_everything", None)
    if trainer.get("precision") not in (None, 32, "32", "32-true"):
        raise ValueError(f"trainer.precision={trainer['precision']!r}: settings are held against float32: leave it out")
    if (plugin_options(found) or {}).get("ramp") is not None:
        raise ValueError("the plugin has a ramp, and tuned formats are fixed: leave it out, and put it in afterwards")
    return found


def plugin_options(config: Config) -> dict[str, Any]:
    """What the configuration says of our plugin already; tuning keeps what it does not choose."""
    for plugin in _plugins(config):
        if _is_ours(plugin):
            return dict(plugin.get("init_args") or {}) if isinstance(plugin, dict) else {}
    return {}


def with_plugin(config: Config, options: Mapping[str, Any] | None, seed: int) -> Config:
    """``config`` with the plugin of ``options`` (``None``: float32, without it) and a seed."""
    others = [plugin for plugin in _plugins(config) if not _is_ours(plugin)]
    ours = [] if options is None else [{"class_path": PLUGIN, "init_args": dict(options)}]
    trainer = {**config["trainer"], "plugins": [*others, *ours]}
    return copy.deepcopy({"seed_everything": seed, **config, "trainer": trainer})


def _plugins(config: Config) -> list[Any]:
    plugins = config["trainer"].get("plugins") or []
    return plugins if isinstance(plugins, list) else [plugins]


def _is_ours(plugin: Any) -> bool:
    path = plugin.get("class_path") if isinstance(plugin, dict) else plugin
    return isinstance(path, str) and path.rsplit(".", 1)[-1] == "FixedPointPrecision"


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


def instantiate(config: Config, watch: Watch | None = None, **trainer: Any) -> LightningCLI:
    """Module, data and trainer of ``config``, made as ``lowprec fit`` makes them, without what people look at.

    Raises:
        ValueError: for a configuration that LightningCLI does not take.
    """
    config = copy.deepcopy(config)
    callbacks = config["trainer"].get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    seen = [each for each in callbacks if not str(each["class_path"]).endswith(_UNSEEN_CALLBACKS)]
    config["trainer"] = {**config["trainer"], **_UNSEEN, **trainer, "callbacks": seen}
    with warnings.catch_warnings():
        # LightningCLI warns where it is given arguments beside a command line, here our own command's.
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        try:
            return LightningCLI(
                args=config,
                run=False,
                save_config_callback=None,
                trainer_defaults={"callbacks": [] if watch is None else [watch]},
                parser_kwargs={"exit_on_error": False},
            )
        except ArgumentError as error:
            raise ValueError(f"the configuration is refused: {error}") from error


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


def rehearse(config: Config, metric: str) -> LightningCLI:
    """Two batches of training and validation, in this process: everything that fails at once fails now.

    Raises:
        ValueError: if the metric is not among those that the module logs.
    """
    with quietly():
        cli = instantiate(config, fast_dev_run=2, **_IN_THIS_PROCESS)
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    logged = sorted(cli.trainer.callback_metrics)
    if metric not in logged:
        raise ValueError(
            f"metric={metric!r} is not logged while fitting; the module logs {', '.join(logged) or 'none'}"
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
    """
    start = time.perf_counter()
    with quietly():
        watch = Watch(metric, judge)
        cli = instantiate(config, watch)
        if cli.trainer.world_size > 1:
            watch.judge = None
        if twin:
            perturb_last_bit_(cli.model)
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
    value = cli.trainer.callback_metrics.get(metric, torch.tensor(math.nan)).item()
    if diverged is None and not all(map(math.isfinite, [*curve, value])):
        diverged = f"{metric} is not finite"
    curve = [each for each in curve if math.isfinite(each)]  # JSON has no word for the others
    seconds = round(time.perf_counter() - start, 3)
    if watch.stopped is not None or diverged is not None:
        return Run(setting, seed, twin, curve, None, None if diverged else watch.stopped, diverged, seconds)
    return Run(setting, seed, twin, curve, value, seconds=seconds)
