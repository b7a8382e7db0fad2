"""``lowprec tune``: from a user's configuration to a tuned one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from tqdm.auto import tqdm

from lowprec_plugin.experiments import Config, plugin_options, read_config, with_plugin
from lowprec_plugin.formats import check_integer
from lowprec_plugin.quality import MIN_SEEDS, allowance
from lowprec_plugin.text.files import alone_in
from lowprec_plugin.text.option_error import Option, OptionError
from lowprec_plugin.tune.baseline import Baseline
from lowprec_plugin.tune.cost import Costs, network_of
from lowprec_plugin.tune.records import Judge, Records, Run
from lowprec_plugin.tune.report import Found, save
from lowprec_plugin.tune.search import Search
from lowprec_plugin.tune.space import FLOAT32, Setting, Space, make_space, written
from lowprec_plugin.tune.training import check_processes, rehearse_metric, train
from lowprec_plugin.version import __version__


def tune(
    config: str | None = None,
    model: str | None = None,
    data: str | None = None,
    metric: str = "val_accuracy",
    mode: Literal["max", "min"] = "max",
    tolerance: float | str = "0.5%",
    weights: Sequence[int | str | None] = (4, 6, 8, 10, 12, 16),
    state: Sequence[int] = (4, 6, 8, 12, 16),
    activations: Sequence[int | str | None] = (),
    errors: Sequence[int | str | None] = (),
    kept: Sequence[int | None] = (),
    wire: Sequence[int] = (),
    rounding: Sequence[Literal["stochastic", "nearest"]] = ("stochastic", "nearest"),
    layers: Sequence[str] = (),
    importance: Mapping[str, float] | None = None,
    count: Literal["codes", "bytes"] = "codes",
    runs: int = 24,
    seeds: int = 4,
    epochs: int | None = None,
    seed: int = 0,
    output: str = "lowprec_tune",
    progress: bool = True,
) -> Found:
    """Find the narrowest formats that keep a metric within a tolerance of float32, and write them as a configuration.

    Float32 is trained first, over ``seeds + 1`` seeds, each with a twin. Then up to ``runs`` settings are trained with
    the first seed; the cheapest that passes is trained with the others, and only what holds there is written. A search
    that was interrupted goes on where it was if the command is given again; one with another tolerance, other rungs or
    more runs takes up what is there.

    Args:
        config: a LightningCLI configuration (YAML) of what to train; none: scikit-learn's digits.
        model: import path of a LightningModule, in place of the configuration's.
        data: import path of a LightningDataModule, likewise.
        metric: what is kept: a name that the module logs while fitting, at the end of epochs.
        mode: whether more of it is better, "max" or "min".
        tolerance: how much worse it may be: a number in its units, or text such as "0.5%" of float32's.
        weights: word lengths or formats ("<2,10>") of the weights to choose from; [] not to tune them.
        state: word lengths of the optimizer's state.
        activations: formats of layer outputs, emulated; null: they may stay in float32.
        errors: formats of back-propagated errors, emulated; null likewise.
        kept: word lengths of the activations that are kept for the backward pass; null likewise.
        wire: word lengths of gradients between processes: 4, 8, 12, 16. Needs strategy ddp_spawn and several devices.
        rounding: which to try.
        layers: patterns of module names, such as "network.5" or "head*", whose activations and errors get formats of
            their own, and whose weights may stay in float32.
        importance: how much "parameters", "activations" and "wire" count in the cost; 1 each.
        count: of weights and state, the bits of their "codes" (12 of a 12-bit word, as hardware and files may hold
            them), or the "bytes" that memory holds for them (2 of a 12-bit word).
        runs: settings to try.
        seeds: of the confirmation, at least 4.
        epochs: of each run, in place of the configuration's.
        seed: the first seed, of the search.
        output: folder for tuned.yaml, table.md, trials.json, frontier.svg and the record of runs.
        progress: show a progress bar.

    Returns:
        what was found, with every trial.

    Raises:
        ValueError: for an argument outside its limits, a configuration that LightningCLI or the plugin refuses, a
            metric that is not logged, a tolerance below float32's own noise, or a folder with runs of something else.
        ModuleNotFoundError: without Optuna.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ModuleNotFoundError('lowprec tune needs Optuna: pip install "lowprec-plugin[tune]"')
    arguments = dict(locals())
    _check(arguments)
    complete = read_config(config, model, data, epochs)
    base = plugin_options(complete)
    ladders = {
        "weights": weights, "state": state, "activations": activations, "errors": errors, "kept": kept, "wire": wire,
    }  # fmt: skip
    space = make_space(ladders, rounding, layers, base)
    costs = _costs(complete, space, base, metric, importance or {}, count)
    search = {
        name: value
        for name, value in arguments.items()
        if name not in ("output", "progress", "config", "model", "data")
    }
    trained = {"config": complete, "metric": metric, "lowprec_plugin": __version__, "torch": torch.__version__}
    search = {**trained, "optuna": version("optuna"), **search}
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    steps = 2 * (seeds + 1) + runs + seeds
    with alone_in(folder), tqdm(total=steps, disable=not progress, unit="run", dynamic_ncols=True) as bar:
        records = Records(folder / "runs.jsonl", trained)

        def run(setting: Setting | None, seed: int, judge: Judge | None = None, twin: bool = False) -> Run:
            bar.set_description(f"seed {seed}, {FLOAT32 if setting is None else written(setting)}")
            wanted = Run(setting, seed, twin)
            done = records.replayed(wanted.key, judge)
            if done is None:
                options = None if setting is None else space.options(setting, base, seed)
                made = with_plugin(complete, options, seed)
                done = train(made, setting, seed, metric, twin=twin, judge=judge)
                records.add(done)
            bar.update()
            return done

        all_seeds = range(seed, seed + seeds + 1)
        try:
            baseline = Baseline(
                [run(None, each) for each in all_seeds],
                [run(None, each, twin=True) for each in all_seeds],
                mode == "max",
                tolerance,
            )
            searching = Search(space, costs, baseline, run, runs=runs, seed=seed)
            best = searching.result()
        except (KeyboardInterrupt, SystemExit):  # the latter is what Lightning makes of the former
            bar.close()
            print("interrupted: the same command goes on from the runs that have ended", file=sys.stderr)
            raise SystemExit(130) from None
        tuned = None if best is None else with_plugin(complete, space.options(best.setting, base, seed), seed)
        found = Found(metric, baseline.tolerance, baseline, searching.trials, best, searching.closed, tuned)
        bar.close()
        print("\n" + save(folder, found, costs, search, sum(each.seconds for each in records.runs.values())))
    return found


def _check(arguments: Mapping[str, Any]) -> None:
    for name in ("runs", "seeds", "seed"):
        check_integer(arguments[name], name)
    if arguments["runs"] < 1:
        raise OptionError(Option.given("runs", arguments["runs"]), ": at least one setting has to be tried")
    if arguments["seeds"] < MIN_SEEDS:
        raise OptionError(Option.given("seeds", arguments["seeds"]), f": a confirmation needs at least {MIN_SEEDS}")
    if arguments["epochs"] is not None:
        check_integer(arguments["epochs"], "epochs", 1)
    for name, words in (("mode", ("max", "min")), ("count", ("codes", "bytes"))):
        if arguments[name] not in words:
            raise OptionError(Option.given(name, arguments[name]), f" is not one of {words}")
    allowance(arguments["tolerance"], 1.0)


def _costs(
    config: Config, space: Space, base: Mapping[str, Any], metric: str, importance: Mapping[str, float], count: str
) -> Costs:
    """Rehearse float32 and the widest setting: what they refuse, they refuse now; and what they hold is counted."""
    check_processes(config, wire="wire" in space.ladders)
    float32 = rehearse_metric(with_plugin(config, None, 0), metric)
    _check_layers(space.layers, float32.model)
    widest = {name: _widest_format(ladder) for name, ladder in space.ladders.items()}
    fixed = rehearse_metric(with_plugin(config, space.options(widest, base, 0), 0), metric)
    inside = getattr(fixed.trainer.precision_plugin, "inside", None)
    network = network_of(float32.model, float32.trainer.optimizers, None if inside is None else inside.emulator)
    return Costs(space, network, base, importance, count)


def _check_layers(layers: Sequence[str], module: nn.Module) -> None:
    modules = [name for name, each in module.named_modules() if name and any(True for _ in each.parameters())]
    for layer in layers:
        if not any(fnmatchcase(name, layer) for name in modules):
            raise OptionError(
                Option.given("layers", layer), f" is no module with parameters; there are {', '.join(modules)}"
            )


def _widest_format(ladder: Sequence[str]) -> str:
    return next((rung for rung in reversed(ladder) if rung != FLOAT32), FLOAT32)
