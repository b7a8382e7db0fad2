"""``lowprec poc``: train every variant from the same seeds on the same data in the same order, and report."""

from __future__ import annotations

import inspect
import json
import math
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from lowprec_plugin.experiments import DIGITS, Config, class_path, read_config
from lowprec_plugin.experiments.environment import versions
from lowprec_plugin.experiments.lightnings import lightning_of_config
from lowprec_plugin.experiments.making import IN_THIS_PROCESS
from lowprec_plugin.formats import check_integer
from lowprec_plugin.poc.report.command import write
from lowprec_plugin.poc.run.processes import Processes
from lowprec_plugin.poc.run.rehearsal import Rehearsed, chosen_metric, rehearsed
from lowprec_plugin.poc.run.study import Mode, RunRecord, Study, claim, load, run_file
from lowprec_plugin.poc.run.variants import BF16, BF16_MIXED, DEFAULT, FLOAT32, TWIN, VARIANTS, WIRE
from lowprec_plugin.poc.run.worker import Order, diverged_by_another, fit, train
from lowprec_plugin.poc.verdict.noise import ahead, blind
from lowprec_plugin.quality import allowance
from lowprec_plugin.text.files import alone_in
from lowprec_plugin.text.numbers import about, counted, listed
from lowprec_plugin.text.option_error import Option, OptionError

TITLES = {
    "digits": "Handwritten digits, MLP 64-256-256-10, AdamW",
    "mnist": "MNIST, MLP 784-256-256-10, AdamW",
}


def run_poc(
    config: str | None = None,
    model: str | None = None,
    data: str | None = None,
    task: Literal["digits", "mnist"] = "digits",
    variants: Sequence[str | int] | str = DEFAULT,
    metric: str | None = None,
    mode: Mode | None = None,
    tolerance: float | str | None = None,
    seeds: int = 4,
    epochs: int | None = None,
    steps: int | None = None,
    devices: int = 1,
    price: float | None = None,
    root: str = "data/mnist",
    output: str = "lowprec_poc",
    progress: bool = True,
) -> list[RunRecord]:
    """Train your own module in float32 and in fixed-point side by side, and write a report to decide on.

    All runs of a seed have the same initial weights, the same data in the same order and the same number of steps.
    Given again, the command makes the runs that are missing, have failed or were interrupted.

    Args:
        config: a LightningCLI configuration (YAML) of what to train; none: a task.
        model: import path of a LightningModule that is made without arguments, in place of the configuration's; or of a
            function without arguments, annotated with the LightningModule that it returns: def make() -> Net. Arguments
            are given by a configuration, as model.class_path and model.init_args.
        data: import path of a LightningDataModule, or of such a function, likewise.
        task: where neither is given: "digits" (scikit-learn's, no download) or "mnist".
        variants: names, as a list or separated by commas; float32 and its twin, the yardstick, always run.
        metric: what is compared: a name that the module logs; none: an accuracy or a loss that validation logs.
        mode: whether more of it is better, "max" or "min"; none: as its name says.
        tolerance: how much worse a variant may be: a number in the metric's units, or a share of float32's such as 2%;
            none: what is not equal to float32 is worse, or not settled.
        seeds: how many; with at least 4 there is a verdict on equal quality.
        epochs: of each run, in place of the configuration's.
        steps: of each run at most, likewise.
        devices: processes of each run, in place of the configuration's; each has a GPU of its own where there are some.
        price: of an hour of one device, in your own currency, for a line on cost.
        root: folder of MNIST's files.
        output: folder for the runs and the report.
        progress: show a progress bar; without one, and where there is no terminal, print a line for each run.

    Returns:
        the records of all runs.

    Raises:
        ValueError: for an argument outside its limits, a configuration that LightningCLI refuses, a metric that is not
            logged, or a folder with runs of something else, or in use by another process; with the report written, if
            every run failed.
    """
    if isinstance(variants, str):
        variants = re.split(r",\s*(?![^<]*>)", variants)  # not at the comma of <2,10>
    arguments = {**locals(), "variants": [str(name) for name in variants]}  # a command line's 16 is a number
    _check(arguments)
    given = read_config(config, model, data, epochs, _tasks(root)[task])
    unused = ["max_time"] if given["trainer"].get("max_time") else []
    here = {"devices": (None, "auto", -1, "-1", devices, str(devices)), "num_nodes": (None, 1)}
    replaced = {name: given["trainer"].get(name) for name, usual in here.items()}
    replaced = {name: value for name, value in replaced.items() if value not in here[name]}
    complete = _placed(_bounded(given, steps), devices)
    found = rehearsed(complete)
    unused += found.left_out
    metric, mode, chosen = chosen_metric(found, metric, mode)
    names = dict.fromkeys([FLOAT32.name, TWIN.name, *arguments["variants"]])
    left_out = {}
    if devices == 1 and WIRE.name in names:
        left_out[WIRE.name] = "one process sends nothing; use --devices 2 or more"
    if found.no_bf16 and BF16.name not in names:  # else its own runs say so
        left_out[BF16_MIXED] = found.no_bf16
    study = Study(
        title=_title(complete, None if config or model else task, found.steps),
        metric=metric,
        mode=mode,
        metric_chosen=chosen,
        config=complete,
        command=_command(arguments),
        variants={name: VARIANTS[name].flag(complete, found.steps) for name in names if name not in left_out},
        left_out=left_out,
        seeds=list(range(seeds)),
        devices=devices,
        steps=found.steps,
        price=price,
        versions=versions(lightning_of_config(complete)),
        device=found.device,
        tolerance=tolerance,
    )
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        claim(folder, study)
        print(f"{study.title}: {metric}, {chosen}", flush=True)
        for name, why in left_out.items():
            print(f"{name} is left out: {why}", flush=True)
        if replaced:
            theirs = listed([f"{name}={value!r}" for name, value in replaced.items()])
            where = counted(devices, "process", "processes")
            print(f"instead of the configuration's {theirs}: {where} on this machine (--devices)", flush=True)
        if unused:
            why = f"all runs take the same steps and write only to {output}"
            print(f"left out of the configuration, because {why}: {listed(unused)}", flush=True)
        try:
            runs = _runs(study, folder, found, progress)
        except (KeyboardInterrupt, SystemExit):  # the latter is what Lightning makes of the former
            print("interrupted: the same command continues with the runs that are missing", file=sys.stderr)
            raise SystemExit(130) from None
        print("\n" + write(folder))
    if all(run.status == "failed" for run in runs):
        raise ValueError(f"every run failed; the first with {runs[0].reason}")
    return runs


def _runs(study: Study, folder: Path, found: Rehearsed, progress: bool) -> list[RunRecord]:
    """Every run, from its record or made now; all variants of a seed in turn, so that a slow minute slows them all.

    The estimate appears once the first run ends: the rehearsal's two batches are mostly warm-up.
    """
    ended = {
        (seed, name): _ended(run_file(folder, name, seed), study.metric)
        for seed in study.seeds
        for name in study.variants
    }
    there, of = sum(record is not None for record in ended.values()), len(ended)
    print(ahead(study, there), flush=True)
    hidden = None if progress else True  # None: where there is no terminal
    bar = tqdm(total=of, initial=there, disable=hidden, unit="run", dynamic_ncols=True)

    def told(epoch: int, step: int) -> None:
        bar.set_postfix(epoch=epoch + 1, step=step if study.steps is None else f"{step}/{study.steps}")

    runs, seconds, began = [], list[float](), datetime.now(timezone.utc).isoformat(timespec="seconds")
    with closing(Processes(study.devices, fit)) as processes, bar:
        for (seed, name), record in ended.items():
            if record is None:
                bar.set_description(f"{name}, seed {seed}")
                order = Order(study, found, name, seed, run_file(folder, name, seed).parent, began)
                record = train(order, told, processes)
                bar.update()
                seconds.append(record.seconds)
                if bar.disable:
                    so_far = there + len(seconds)
                    left = f", {about((of - so_far) * statistics.mean(seconds))} left" if so_far < of else ""
                    print(f"{so_far} of {of}: {_ending(record, study.metric)}{left}", flush=True)
            runs.append(record)
            if name == TWIN.name and (said := blind(study, runs)):
                bar.write(said)
    return runs


def _ending(run: RunRecord, metric: str) -> str:
    """How a run ended, for those who see no progress bar."""
    said = f"{metric} {run.metrics.get(metric, math.nan):.4g}" if run.status == "finished" else run.status
    reason = f": {run.reason}" if run.reason else ""
    return f"{run.variant}, seed {run.seed}: {said}{reason}, {run.seconds:.1f} s"


def _tasks(root: str) -> dict[str, Config]:
    network = {"class_path": "lowprec_plugin.tasks.MLP", "init_args": {"inputs": 784}}
    mnist = {
        "trainer": {"max_epochs": 4, "accelerator": "cpu"},
        "model": {"class_path": DIGITS["model"]["class_path"], "init_args": {"network": network, "lr": 0.004}},
        "data": {"class_path": "lowprec_plugin.tasks.MNISTDataModule", "init_args": {"root": root}},
    }
    digits = {**DIGITS, "trainer": {**DIGITS["trainer"], "max_epochs": 10}}  # for a first look
    return {"digits": digits, "mnist": mnist}


def _check(arguments: Mapping[str, Any]) -> None:
    for option, names, known in (
        ("variants", arguments["variants"], list(VARIANTS)),
        ("task", [arguments["task"]], list(TITLES)),
        ("mode", [arguments["mode"] or "max"], ["max", "min"]),
    ):
        for name in names:
            if name not in known:
                raise OptionError(Option.given(option, name), f" is not one of {', '.join(map(repr, known))}")
    for name in ("seeds", "epochs", "steps", "devices"):
        if arguments[name] is not None:
            check_integer(arguments[name], name, 1)
    output = Option.given("output", arguments["output"])
    if Path(arguments["output"]).is_file():
        raise OptionError(output, " is a file: give a folder, which is made if it is not there")
    if arguments["tolerance"] is not None:
        allowance(arguments["tolerance"], 1.0)
    price = arguments["price"]
    if price is not None and not 0 < price < math.inf:
        raise OptionError(Option.given("price", price), " must be above 0")


def _bounded(config: Config, steps: int | None) -> Config:
    """``config`` with an end that all runs reach; a limit on time would cut the slower ones short."""
    trainer = config["trainer"]
    trainer.pop("max_time", None)
    if steps is not None:
        trainer["max_steps"] = steps
    if trainer.get("max_epochs") in (None, -1) and trainer.get("max_steps") in (None, -1):
        raise OptionError(
            "no end of a run is given: ", Option("epochs"), ", ", Option("steps"),
            ", or max_epochs or max_steps in the configuration",
        )  # fmt: skip
    return config


def _placed(config: Config, devices: int) -> Config:
    """``config`` on so many processes of this machine.

    Raises:
        ValueError: for a strategy that does not hold the whole model in every process.
    """
    strategy = config["trainer"].get("strategy") or "auto"
    name = class_path(strategy).rpartition(".")[2]
    if not name.lower().startswith(("auto", "ddp", "singledevice")):
        raise ValueError(
            f"trainer.strategy={name!r}: runs are compared on one process, or on several with DDP: leave it out"
        )
    config["trainer"] |= IN_THIS_PROCESS
    if devices > 1:
        of_users = (isinstance(strategy, Mapping) and name.startswith("DDP")) or name.startswith("ddp_find")
        config["trainer"] |= {"devices": devices, "strategy": strategy if of_users else "ddp"}
    return config


def _title(config: Config, task: str | None, steps: int | None) -> str:
    trainer = config["trainer"]
    parts = [class_path(config[part]) for part in ("model", "data") if config.get(part)]
    what = " on ".join(parts) if task is None else TITLES[task]
    most = trainer.get("max_steps")
    if most not in (None, -1) and steps in (None, most):  # else the epochs end first
        return f"{what}, {counted(most, 'step')}"
    return f"{what}, {counted(trainer['max_epochs'], 'epoch')}"


def _command(arguments: Mapping[str, Any]) -> str:
    """The command line of these arguments, defaults left out."""
    words = ["lowprec", "poc"]
    for name, parameter in inspect.signature(run_poc).parameters.items():
        value = arguments[name]
        if name != "progress" and value != parameter.default and (name != "variants" or tuple(value) != DEFAULT):
            text = value if isinstance(value, str) else json.dumps(list(value) if name == "variants" else value)
            words.append(f"--{name}={text}")
    return shlex.join(words)


def _ended(path: Path, metric: str) -> RunRecord | None:
    """The record of a run that need not be repeated: it ended, as ``metric`` sees it too."""
    record = load(path) if path.exists() else None
    if record is None or record.status == "failed":
        return None
    lacking = metric not in record.metrics if record.status == "finished" else diverged_by_another(record, metric)
    return None if lacking else record
