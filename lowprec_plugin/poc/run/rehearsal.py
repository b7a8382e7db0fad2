"""Before the runs: two batches of everything, the metric to compare, and the length of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowprec_plugin.arithmetic.devices import device_name
from lowprec_plugin.compat.bases import Callback
from lowprec_plugin.compat.lightning import overrides
from lowprec_plugin.compat.lightnings import is_a
from lowprec_plugin.experiments import Config
from lowprec_plugin.experiments.making import IN_THIS_PROCESS, instantiate, quietly, rehearse, unseen
from lowprec_plugin.poc.run.measures import Measures
from lowprec_plugin.poc.run.metrics import ACCURACY, LOSS, way
from lowprec_plugin.poc.run.processes import in_one_line
from lowprec_plugin.poc.run.study import Mode
from lowprec_plugin.poc.run.variants import BF16, FLOAT32
from lowprec_plugin.text.option_error import Option, OptionError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.cli import LightningCLI

_EITHER_MODE = (Option("mode", "max"), " or ", Option("mode", "min"))
#: Callbacks that end runs at different steps, and those that write files.
_LEFT_OUT = ("callbacks.EarlyStopping", "callbacks.Timer", "callbacks.Checkpoint")


@dataclass(frozen=True)
class Rehearsed:
    """What two batches showed."""

    fitted: Sequence[str]  # metrics that the fit logs, validation's included
    validated: Sequence[str]  # metrics that validation logs
    tested: Sequence[str]  # metrics that the test logs
    has_test: bool
    steps: int | None  # of a whole run, estimated by Lightning if it can
    activations: Mapping[str, int]  # bytes kept for the backward pass in "float32", and in "bf16" where that runs
    device: str
    left_out: Sequence[str]  # classes of callbacks and loggers that no run has, the module's own included
    no_bf16: str = ""  # why the module does not run in bf16, if it does not


def rehearsed(config: Config) -> Rehearsed:
    """Train, validate and test two batches in float32, and count the steps of a run.

    Raises:
        ValueError: for a configuration that LightningCLI does not take; and whatever the user's own code raises.
    """
    measures = Measures(1)
    cli = rehearse(FLOAT32.config(config, 0, None), [measures])
    if cli.trainer.precision != "32-true":
        raise ValueError(
            f"trainer.plugins bring precision {cli.trainer.precision!r}, but formats are compared with float32: leave "
            "them out"
        )
    fitted = sorted(cli.trainer.callback_metrics)
    has_test = overrides(cli.model, "test_step") and _has("test_dataloader", cli)
    results: Sequence[Mapping[str, float]] = ()
    with quietly():
        given = {"datamodule": cli.datamodule, "verbose": False}
        if overrides(cli.model, "validation_step") and _has("val_dataloader", cli):
            cli.trainer.validate(cli.model, **given)
        if has_test:
            results = cli.trainer.test(cli.model, **given)
    activations, no_bf16 = {"float32": measures.activations}, ""
    try:
        bf16 = Measures(1)
        rehearse(BF16.config(config, 0, None), [bf16])
        activations |= {"bf16": bf16.activations}
    except Exception as error:  # of the user's own code too: the runs in other formats do not need it
        no_bf16 = in_one_line(error)
    ending = [type(each).__name__ for each in cli.trainer.callbacks if is_left_out(each)]  # type: ignore[attr-defined]
    return Rehearsed(
        fitted,
        sorted(measures.at_validation),  # what validate() returns lacks some names
        sorted({name for result in results for name in result}),
        has_test,
        _steps(config),
        activations,
        device_name(cli.trainer.strategy.root_device),
        sorted({*ending, *unseen(config)}),
        no_bf16,
    )


def is_left_out(callback: Callback) -> bool:
    """Whether runs leave it out: it ends them at different steps, or writes files."""
    return any(is_a(callback, path) for path in _LEFT_OUT)


def chosen_metric(found: Rehearsed, metric: str | None, mode: Mode | None) -> tuple[str, Mode, str]:
    """The metric to compare, whether more of it is better, and why this one, in words.

    Raises:
        ValueError: if ``metric`` is not logged, if nothing that is logged can be chosen, or if neither the name nor
            ``mode`` says which way is better.
    """
    logged = sorted({*found.fitted, *found.validated, *found.tested})
    known = f"the module logs {', '.join(logged) or 'none'}"
    if metric is not None:
        if metric not in logged:
            raise OptionError(Option.given("metric", metric), f" is not logged while fitting or testing; {known}")
        better = mode or way(metric)
        if better is None:
            raise OptionError(
                Option.given("metric", metric), " does not say whether more of it is better: give ", *_EITHER_MODE
            )
        return metric, better, "as requested"
    stage, names = ("validation", found.validated) if found.validated else ("test", found.tested)
    for wanted in (ACCURACY, LOSS):
        ways = {name: way(name) for name in names if wanted.search(name)}
        named = {name: each for name, each in ways.items() if each and mode in (None, each)}
        if named:
            name = min(named, key=lambda each: (each != "val_loss", len(each), each))
            return name, named[name], f"chosen from what {stage} logs ({', '.join(names)})"
    raise OptionError(
        "no validation or test logs an accuracy or a loss to compare: log one, or name what to compare, ",
        Option("metric", "NAME"), " and ", *_EITHER_MODE, f"; {known}",
    )  # fmt: skip


def _has(loader: str, cli: LightningCLI) -> bool:
    return overrides(cli.model, loader) or (cli.datamodule is not None and overrides(cli.datamodule, loader))


class _Count(Callback):
    """Asks Lightning for the steps of a fit, and ends it before the first."""

    steps: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        self.steps = int(steps) if math.isfinite(steps) else None
        trainer.should_stop = True


def _steps(config: Config) -> int | None:
    """Also begins a fit without ``fast_dev_run``, which hides wrong limits and intervals."""
    trainer = config["trainer"]
    limit = None if trainer.get("max_steps") in (None, -1) else int(trainer["max_steps"])
    by_epochs = trainer.get("max_epochs") not in (None, -1)
    count = _Count()
    # Limits are batches of each process, and here one process stands for all.
    limits = [name for name in ("limit_train_batches", "overfit_batches") if isinstance(trainer.get(name), int)]
    changes = {name: trainer["devices"] * trainer[name] for name in limits}
    changes |= {"max_steps": -1 if by_epochs else limit, "min_epochs": None, "min_steps": None}
    with quietly():
        made = FLOAT32.config(config, 0, None)
        cli = instantiate(made, [count], num_sanity_val_steps=0, **changes, **IN_THIS_PROCESS)
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    if not by_epochs or count.steps is None:
        return limit
    steps: int = math.ceil(count.steps / trainer["devices"])  # each process has its share of an epoch
    return steps if limit is None else min(steps, limit)
