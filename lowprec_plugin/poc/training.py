"""One run of the proof of concept: from a configuration to a record."""

from __future__ import annotations

import csv
import math
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException

from lowprec_plugin.arithmetic.devices import counts_memory, device_name
from lowprec_plugin.compat.bases import Callback
from lowprec_plugin.compat.lightnings import is_a
from lowprec_plugin.experiments import Config
from lowprec_plugin.experiments.lightnings import lightning_of_config
from lowprec_plugin.experiments.making import LastBit, instantiate, quietly
from lowprec_plugin.monitoring import FixedPointMonitor
from lowprec_plugin.monitoring.figures import PREFIX
from lowprec_plugin.monitoring.watched import watched
from lowprec_plugin.optim.finite import NonFiniteGradientError
from lowprec_plugin.plugin import FixedPointPrecision
from lowprec_plugin.poc.environment import versions
from lowprec_plugin.poc.measures import Measures, logged
from lowprec_plugin.poc.processes import LOOK, Processes, Told
from lowprec_plugin.poc.records import RunRecord, save
from lowprec_plugin.poc.study import RUN

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.cli import LightningCLI

#: Callbacks that end runs at different steps, and those that write what nobody asked for.
_LEFT_OUT = ("callbacks.EarlyStopping", "callbacks.Timer", "callbacks.Checkpoint")
#: Points of a curve, at least, and the interval of Lightning's own logging, at most.
POINTS, INTERVAL = 30, 50
#: Characters of a reason.
LONGEST = 300
#: Ends the reason of a run that diverged, behind the name of what did.
NOT_FINITE = " is not finite"


@dataclass(frozen=True)
class Order:
    """What to run.

    Attributes:
        config: complete, with seed and plugin.
        variant, seed: of the record.
        twin: move every weight by a last bit at the start.
        folder: for ``run.json`` and ``metrics.csv``; emptied first.
        metric: whose being finite is part of a run's success.
        validated: names that validation logs, which are its own even where training or a test logs them too.
        tested: whether there is a test of what the fit ends with.
        interval: steps between two points of a curve.
        activations: bytes that float32 and bf16 keep for the backward pass, as :class:`.Rehearsed` has them.
        began: when the command did.
    """

    config: Config
    variant: str
    seed: int
    twin: bool
    folder: Path
    metric: str
    validated: Sequence[str]
    tested: bool
    interval: int
    activations: Mapping[str, int]
    began: str


def interval_of(config: Config, steps: int | None) -> int:
    """Steps between two points of a curve: as the configuration has it, or fewer if the run is short.

    At least 2, for steps at which the monitor looks are not timed.
    """
    usual = int(config["trainer"].get("log_every_n_steps") or INTERVAL)
    return max(2, usual if steps is None else min(usual, steps // POINTS))


def train(order: Order, told: Told, processes: Processes) -> RunRecord:
    """Have ``processes`` run it with :func:`fit`, and write its record, whatever becomes of it.

    An interrupt alone leaves none.
    """
    shutil.rmtree(order.folder, ignore_errors=True)
    order.folder.mkdir(parents=True)
    start = time.perf_counter()
    try:
        record: RunRecord = processes.run(order, told)
    except Exception as error:
        record = RunRecord(
            order.variant, order.seed, "failed", _reason(error), devices=order.config["trainer"]["devices"],
            seconds=round(time.perf_counter() - start, 3), environment=versions(lightning_of_config(order.config)),
        )  # fmt: skip
    record = replace(record, began=order.began)
    save(order.folder / RUN, record)
    return record


def is_left_out(callback: Callback) -> bool:
    """Whether no run has it, for it ends runs at different steps, or writes what nobody asked for."""
    return any(is_a(callback, path) for path in _LEFT_OUT)


class _ToTheEnd(Callback):
    """Leaves out what ends runs before they are over, whether the configuration or the module has it."""

    def setup(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        trainer.callbacks = [each for each in trainer.callbacks if not is_left_out(each)]  # type: ignore[attr-defined]


class _Telling(Callback):
    """Tells where a run is, now and then."""

    def __init__(self, told: Told) -> None:
        self._told, self._last = told, 0.0

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if time.monotonic() - self._last > LOOK:
            self._last = time.monotonic()
            self._told(trainer.current_epoch, trainer.global_step)


def fit(order: Order, told: Told) -> RunRecord:
    """Train, and test; a number that is not finite ends it, and is part of the record.

    Called by every process of the run alike; the record of the first is the run's.
    """
    start = time.perf_counter()
    measures = Measures(order.interval)
    logger = {"class_path": "lowprec_plugin.poc.logger.RunLogger",
              "init_args": {"save_dir": str(order.folder)}}  # fmt: skip
    with quietly():
        # The monitor's advice is in the report, of all runs together.
        warnings.filterwarnings("ignore", module=r"lowprec_plugin\.monitoring")
        callbacks = [
            measures,
            FixedPointMonitor(order.interval),
            _Telling(told),
            _ToTheEnd(),
            *([LastBit()] if order.twin else []),
        ]
        cli = instantiate(order.config, callbacks, logger=logger, log_every_n_steps=order.interval)
        if counts_memory(cli.trainer.strategy.root_device):
            torch.accelerator.reset_peak_memory_stats(cli.trainer.strategy.root_device)
        refused, tests = "", []
        try:
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        except NonFiniteGradientError as error:
            refused = str(error)
        record = _record(order, cli, measures)
        if not refused:
            given: dict[str, Any] = {"datamodule": cli.datamodule, "verbose": False}
            if order.validated and measures.validated != record.steps:  # the last step was not the end of an epoch
                cli.trainer.validate(cli.model, **given)
            tests = cli.trainer.test(cli.model, **given) if order.tested else []
    curves = _curves(order.folder / "metrics.csv")
    peaks = [value for _, value in curves.get("lowprec/peak_gib", [])]
    metrics = record.metrics | {name: float(value) for each in tests for name, value in each.items()}
    metrics |= {name: value for name, value in measures.at_validation.items() if name in order.validated}
    reason = refused or _not_finite(metrics, order.metric, measures.loss)
    return replace(
        record,
        status="diverged" if reason else "finished",
        reason=reason,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        tested=list(dict.fromkeys(name for each in tests for name in each if name not in order.validated)),
        curves=curves,
        peak=round(max(peaks, default=0.0) * 2**30),
        nonfinite=measures.nonfinite,
        seconds=round(time.perf_counter() - start, 3),
    )


def _record(order: Order, cli: LightningCLI, measures: Measures) -> RunRecord:
    """What is known at the end of the fit."""
    trainer, plugin = cli.trainer, cli.trainer.precision_plugin
    ours = plugin if isinstance(plugin, FixedPointPrecision) else None
    # The run's, or one of the module's own configure_callbacks, which Lightning puts in its place.
    monitor = next(each for each in trainer.callbacks if isinstance(each, FixedPointMonitor))  # type: ignore[attr-defined]
    kept, float32 = order.activations, dict(measures.float32)
    if float32 and "float32" in kept:
        float32["activations"] = kept["float32"]
    bf16 = dict(measures.float32)
    if bf16 and "bf16" in kept:
        bf16 |= {"activations": kept["bf16"], "weights": bf16["weights"] + kept["bf16 copies"]}
    return RunRecord(
        order.variant,
        order.seed,
        "finished",
        steps=trainer.global_step,
        epochs=trainer.current_epoch,
        devices=trainer.world_size,
        examples=measures.examples,
        metrics={name: value for name, value in logged(trainer).items() if not name.startswith(PREFIX)},
        held=measures.held,
        float32=float32,
        bf16=bf16,
        parameters=measures.parameters,
        sent=measures.sent,
        float32_sent=measures.float32_sent,
        step_ms=measures.step_ms,
        layers=monitor.layers(),
        kept_in_float=dict(watched(trainer).kept_in_float),
        widened=list(ours.ramping.history) if ours is not None and ours.ramping is not None else [],
        precision=repr(ours) if ours is not None else str(plugin.precision),
        environment={
            **versions(lightning_of_config(order.config)),
            "device": device_name(trainer.strategy.root_device),
        },
    )


def _curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of the logger's file, as (step, value); those that are not finite are left out, as JSON has to."""
    curves: dict[str, list[tuple[int, float]]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    if name not in ("step", "epoch") and math.isfinite(value := _number(text)):
                        curves.setdefault(name, []).append((int(row["step"]), value))
    return {name: sorted(curve, key=lambda point: point[0]) for name, curve in curves.items()}


def _number(text: str) -> float:
    """NaN for none, for a module may log words too."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _not_finite(metrics: Mapping[str, float], metric: str, loss: Tensor | None) -> str:
    """What is not finite at the end; empty if all that tells of a run's success is."""
    if loss is not None and not bool(loss.isfinite().all()):
        return f"the training loss{NOT_FINITE}"
    for name, value in metrics.items():
        if (name == metric or "loss" in name.lower()) and not math.isfinite(value):
            return f"{name}{NOT_FINITE}"
    return ""


def diverged_by_another(record: RunRecord, metric: str) -> bool:
    """Whether a run is said to have diverged for what was compared before, and is not now."""
    name = record.reason.removesuffix(NOT_FINITE)
    return name not in (record.reason, metric) and "loss" not in name.lower()


def _reason(error: Exception) -> str:
    """Why a run failed, in one line that a report has room for."""
    lines = str(error).strip().splitlines() or [""]
    said = f"{type(error).__name__}: {lines[0]}"
    if isinstance(error, ProcessRaisedException):
        last = max(at for at, line in enumerate(lines) if line.startswith("  File "))  # what follows is the exception
        said = next(line for line in lines[last:] if line and not line[0].isspace())
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} …"
