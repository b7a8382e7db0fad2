"""Before the runs: two batches of everything, the metric that is compared, and how long a run will be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowprec_plugin.compat.bases import Callback
from lowprec_plugin.compat.lightning import overrides
from lowprec_plugin.experiments import Config
from lowprec_plugin.experiments.making import IN_THIS_PROCESS, instantiate, quietly, rehearse, unseen
from lowprec_plugin.poc.environment import device_name
from lowprec_plugin.poc.measures import Measures
from lowprec_plugin.poc.training import is_left_out
from lowprec_plugin.poc.variants import FLOAT32, VARIANTS
from lowprec_plugin.poc.words import ACCURACY, LOSS, way
from lowprec_plugin.text.option_error import Option, OptionError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.cli import LightningCLI

Mode = Literal["max", "min"]
_EITHER_MODE = (Option("mode", "max"), " or ", Option("mode", "min"))


@dataclass(frozen=True)
class Rehearsed:
    """What two batches showed.

    Attributes:
        fitted, validated, tested: names that are logged: at all while fitting, by validation, by a test.
        has_test: whether there is something to test with.
        steps: of a whole run, as Lightning estimates them; ``None`` if it cannot.
        activations: bytes kept for the backward pass in ``"float32"``, and in ``"bf16"`` where that runs;
            ``"bf16 copies"``: what autocast keeps of weights besides.
        device: what it ran on.
        left_out: classes of the configuration's and the module's own callbacks and loggers that no run has.
    """

    fitted: Sequence[str]
    validated: Sequence[str]
    tested: Sequence[str]
    has_test: bool
    steps: int | None
    activations: Mapping[str, int]
    device: str
    left_out: Sequence[str]


def rehearsed(config: Config) -> Rehearsed:
    """Train, validate and test two batches in float32 and count the steps of a run.

    Raises:
        ValueError: for a configuration that LightningCLI does not take; and whatever the user's own code raises.
    """
    measures = Measures(1)
    cli = rehearse(FLOAT32.config(config, 0, None), [measures])
    if cli.trainer.precision != "32-true":
        raise ValueError(
            f"trainer.plugins bring precision {cli.trainer.precision!r}, and formats are held against float32: leave "
            "them out"
        )
    fitted = sorted(cli.trainer.callback_metrics)
    has_test = overrides(cli.model, "test_step") and _has("test_dataloader", cli)
    has_validation = overrides(cli.model, "validation_step") and _has("val_dataloader", cli)
    with quietly():
        given = {"datamodule": cli.datamodule, "verbose": False}
        if has_validation:
            cli.trainer.validate(cli.model, **given)
        tested = _names(cli.trainer.test(cli.model, **given)) if has_test else []
    activations = {"float32": measures.activations}
    bf16 = Measures(1)
    try:
        rehearse(VARIANTS["bf16"].config(config, 0, None), [bf16])
        activations |= {"bf16": bf16.activations, "bf16 copies": bf16.copies}
    except Exception:  # a module that does not run so: its own run will say why
        pass
    device = device_name(cli.trainer.strategy.root_device)
    ending = [type(each).__name__ for each in cli.trainer.callbacks if is_left_out(each)]  # type: ignore[attr-defined]
    left_out = sorted({*ending, *unseen(config)})
    validated = sorted(measures.at_validation)  # as of a run: what validate() returns has not all the names
    return Rehearsed(fitted, validated, tested, has_test, _steps(config), activations, device, left_out)


def chosen_metric(found: Rehearsed, metric: str | None, mode: Mode | None) -> tuple[str, Mode, str]:
    """The metric that is compared, whether more of it is better, and how it came to be that one, in words.

    Raises:
        ValueError: if ``metric`` is not logged, or nothing that is logged can be chosen, or its name does not tell
            which way it is good and ``mode`` does not either.
    """
    logged = sorted({*found.fitted, *found.validated, *found.tested})
    said = f"the module logs {', '.join(logged) or 'none'}"
    if metric is not None:
        if metric not in logged:
            raise OptionError(Option.given("metric", metric), f" is not logged while fitting or testing; {said}")
        told = mode or way(metric)
        if told is None:
            raise OptionError(
                Option.given("metric", metric), " does not tell whether more of it is better: give ", *_EITHER_MODE
            )
        return metric, told, "as it was asked for"
    stage, names = ("validation", found.validated) if found.validated else ("test", found.tested)
    for wanted in (ACCURACY, LOSS):
        named = {name: told for name in names if wanted.search(name) and (told := way(name)) and mode in (None, told)}
        if named:
            name = min(named, key=lambda each: (each != "val_loss", len(each), each))
            return name, named[name], f"chosen of what {stage} logs ({', '.join(names)})"
    raise OptionError(
        "no validation or test logs an accuracy or a loss to compare: log one, or name what to compare, ",
        Option("metric", "NAME"), " and ", *_EITHER_MODE, f"; {said}",
    )  # fmt: skip


def _has(loader: str, cli: LightningCLI) -> bool:
    return overrides(cli.model, loader) or (cli.datamodule is not None and overrides(cli.datamodule, loader))


def _names(results: Sequence[Mapping[str, float]]) -> list[str]:
    return sorted({name for result in results for name in result})


class _Count(Callback):
    """Asks Lightning for the steps of a fit, and ends it before the first."""

    steps: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        self.steps = int(steps) if math.isfinite(steps) else None
        trainer.should_stop = True


def _steps(config: Config) -> int | None:
    """And see whether a fit begins without ``fast_dev_run``, which hides what is wrong with limits and intervals."""
    trainer = config["trainer"]
    limit = None if trainer.get("max_steps") in (None, -1) else int(trainer["max_steps"])
    by_epochs = trainer.get("max_epochs") not in (None, -1)
    count = _Count()
    # A number of batches is each process's, and here one stands for all.
    parts = {
        name: trainer["devices"] * trainer[name]
        for name in ("limit_train_batches", "overfit_batches")
        if isinstance(trainer.get(name), int)
    }
    with quietly():
        cli = instantiate(
            FLOAT32.config(config, 0, None), [count], max_steps=-1 if by_epochs else limit, min_epochs=None,
            min_steps=None, num_sanity_val_steps=0, **parts, **IN_THIS_PROCESS,
        )  # fmt: skip
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    if not by_epochs or count.steps is None:
        return limit
    steps: int = math.ceil(count.steps / trainer["devices"])  # each process has its share of an epoch
    return steps if limit is None else min(steps, limit)
