"""One run: from a configuration to a record."""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowprec_plugin.arithmetic.devices import counts_memory, device_name
from lowprec_plugin.compat.bases import Callback
from lowprec_plugin.experiments import Config
from lowprec_plugin.experiments.making import LastBit, instantiate, quietly
from lowprec_plugin.monitoring import FixedPointMonitor
from lowprec_plugin.monitoring.figures import PREFIX
from lowprec_plugin.monitoring.watched import watched
from lowprec_plugin.optim.finite import NonFiniteGradientError
from lowprec_plugin.plugin import FixedPointPrecision
from lowprec_plugin.poc.run.measures import Measures, logged
from lowprec_plugin.poc.run.processes import LOOK, Processes, Told, in_one_line
from lowprec_plugin.poc.run.rehearsal import Rehearsed, is_left_out
from lowprec_plugin.poc.run.study import RUN, RunRecord, Study, save
from lowprec_plugin.poc.run.variants import VARIANTS

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

#: Least points of a curve, and largest interval between two.
POINTS, INTERVAL = 30, 50
#: Follows the name of what diverged in a reason.
NOT_FINITE = " is not finite"


@dataclass(frozen=True)
class Order:
    """A run of ``variant`` with ``seed``, as ``study`` and its rehearsal have it.

    Attributes:
        folder: for ``run.json`` and ``metrics.csv``; emptied first.
        began: start of the command.
    """

    study: Study
    rehearsed: Rehearsed
    variant: str
    seed: int
    folder: Path
    began: str


def interval_of(config: Config, steps: int | None) -> int:
    """Steps between two points of a curve: the configuration's, or fewer for a short run.

    At least 2, because steps at which the monitor looks are not timed.
    """
    usual = int(config["trainer"].get("log_every_n_steps") or INTERVAL)
    return max(2, usual if steps is None else min(usual, steps // POINTS))


def train(order: Order, told: Told, processes: Processes) -> RunRecord:
    """Run :func:`fit` in ``processes`` and write its record, of a failure too; only an interrupt leaves none."""
    shutil.rmtree(order.folder, ignore_errors=True)
    order.folder.mkdir(parents=True)
    start = time.perf_counter()
    try:
        record: RunRecord = processes.run(order, told)
    except Exception as error:
        study, reason = order.study, in_one_line(error)
        record = RunRecord(
            order.variant, order.seed, "failed", reason, devices=study.devices, environment=study.versions
        )
    record = replace(record, began=order.began, seconds=round(time.perf_counter() - start, 3))
    save(order.folder / RUN, record)
    return record


class _Told(Callback):
    """Leaves out what would end a run early, whoever added it, and reports where the run is."""

    def __init__(self, told: Told) -> None:
        self._told, self._last = told, 0.0

    def setup(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        trainer.callbacks = [each for each in trainer.callbacks if not is_left_out(each)]  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if time.monotonic() - self._last > LOOK:
            self._last = time.monotonic()
            self._told(trainer.current_epoch, trainer.global_step)


def fit(order: Order, told: Told) -> RunRecord:
    """Train, and test; a number that is not finite ends the run and is part of the record.

    Called in every process of the run; the first one's record counts.
    """
    study, validated, variant = order.study, order.rehearsed.validated, VARIANTS[order.variant]
    interval = interval_of(study.config, study.steps)
    measures = Measures(interval)
    logger = {"class_path": "lowprec_plugin.poc.run.logger.RunLogger", "init_args": {"save_dir": str(order.folder)}}
    callbacks = [measures, FixedPointMonitor(interval), _Told(told), *([LastBit()] if variant.twin else [])]
    with quietly():
        # The report has the monitor's advice on all runs together.
        warnings.filterwarnings("ignore", module=r"lowprec_plugin\.monitoring")
        config = variant.config(study.config, order.seed, study.steps)
        cli = instantiate(config, callbacks, logger=logger, log_every_n_steps=interval)
        trainer, device = cli.trainer, cli.trainer.strategy.root_device
        if counts_memory(device):
            torch.accelerator.reset_peak_memory_stats(device)
        refused, tests = "", []
        try:
            trainer.fit(cli.model, datamodule=cli.datamodule)
        except NonFiniteGradientError as error:
            refused = str(error)
        # A monitor of the module's own configure_callbacks takes the place of the run's; a test asks for it anew.
        monitor = next(each for each in trainer.callbacks if isinstance(each, FixedPointMonitor))  # type: ignore[attr-defined]
        metrics = {name: value for name, value in logged(trainer).items() if not name.startswith(PREFIX)}
        if not refused:
            given: dict[str, Any] = {"datamodule": cli.datamodule, "verbose": False}
            if validated and measures.validated != trainer.global_step:  # the last step was not the end of an epoch
                trainer.validate(cli.model, **given)
            tests = trainer.test(cli.model, **given) if order.rehearsed.has_test else []
    metrics |= {name: float(value) for each in tests for name, value in each.items()}
    metrics |= {name: value for name, value in measures.at_validation.items() if name in validated}
    reason = refused or _not_finite(metrics, study.metric, measures.loss)
    plugin, curves = trainer.precision_plugin, trainer.logger.curves  # type: ignore[union-attr]
    float32, bf16 = _in_floats(measures.float32, order.rehearsed.activations)
    ramping = plugin.ramping if isinstance(plugin, FixedPointPrecision) else None
    return RunRecord(
        order.variant,
        order.seed,
        "diverged" if reason else "finished",
        reason,
        steps=trainer.global_step,
        epochs=trainer.current_epoch,
        devices=trainer.world_size,
        examples=measures.examples,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        tested=list(dict.fromkeys(name for each in tests for name in each if name not in validated)),
        curves=curves,
        held=measures.held,
        float32=float32,
        bf16=bf16,
        parameters=measures.parameters,
        peak=round(max((value for _, value in curves.get("lowprec/peak_gib", [])), default=0.0) * 2**30),
        sent=measures.sent,
        float32_sent=measures.float32_sent,
        step_ms=measures.step_ms,
        layers=monitor.layers(),
        kept_in_float=dict(watched(trainer).kept_in_float),
        widened=list(ramping.history) if ramping is not None else [],
        nonfinite=measures.nonfinite,
        precision=repr(plugin) if isinstance(plugin, FixedPointPrecision) else str(plugin.precision),
        environment=study.versions | {"device": device_name(device)},
    )


def _in_floats(held: dict[str, int], kept: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes in float32 and in bf16: ``held``, and what the rehearsal ``kept``; empty where unknown."""
    if not held:
        return {}, {}
    float32 = {**held, "activations": kept["float32"]}
    if "bf16" not in kept:
        return float32, {}
    return float32, {**held, "activations": kept["bf16"]}


def _not_finite(metrics: Mapping[str, float], metric: str, loss: Tensor | None) -> str:
    """What is not finite at the end, of the losses and the metric; empty if all are."""
    if loss is not None and not bool(loss.isfinite().all()):
        return f"the training loss{NOT_FINITE}"
    decisive = (name for name in metrics if name == metric or "loss" in name.lower())
    return next((f"{name}{NOT_FINITE}" for name in decisive if not math.isfinite(metrics[name])), "")


def diverged_by_another(record: RunRecord, metric: str) -> bool:
    """Whether a run diverged only in a metric that was compared before, and no longer is."""
    name = record.reason.removesuffix(NOT_FINITE)
    return name not in (record.reason, metric) and "loss" not in name.lower()
