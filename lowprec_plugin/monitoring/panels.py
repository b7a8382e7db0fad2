"""What loggers show that can show more than scalars: Weights & Biases, and for histograms and text TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_only

from lowprec_plugin.compat.lightning import name_in
from lowprec_plugin.compat.lightnings import is_a
from lowprec_plugin.monitoring.figures import PREFIX, StepFigures
from lowprec_plugin.monitoring.watched import Watched
from lowprec_plugin.plugin import FixedPointPrecision
from lowprec_plugin.telemetry import LayerReport
from lowprec_plugin.telemetry.exponents import ZERO
from lowprec_plugin.text.tables import markdown_table

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.plugins.precision import Precision

#: Where ``WandbLogger`` puts the step, and LearningRateMonitor and ``self.log`` with it.
STEP = "trainer/global_step"
#: Scalars of which a run's summary has the largest, not the last.
MAXIMA = ("held_gib", "peak_gib")
#: Bins of a histogram of shares.
SHARES = 20


def begin(loggers: Sequence[Logger], run: Watched, plugin: Precision) -> None:
    """Define the axes and summaries, and record what is stored how and by whom."""
    for logger in loggers:
        if is_a(logger, "loggers.WandbLogger"):
            wandb_run = logger.experiment
            wandb_run.define_metric(name_in(logger, f"{PREFIX}*"), step_metric=STEP)
            for name in MAXIMA:
                wandb_run.define_metric(name_in(logger, f"{PREFIX}{name}"), step_metric=STEP, summary="max")
            logger.log_hyperparams({"lowprec": configuration(run, plugin)})


def configuration(run: Watched, plugin: Precision) -> dict[str, Any]:
    """The plugin's settings and how the run is stored, in plain data."""
    settings = plugin.terms() if isinstance(plugin, FixedPointPrecision) else plugin.state_dict()
    stored = {"kept_in_float": dict(run.kept_in_float), "table": [row._asdict() for row in run.rows]}
    return {"precision": plugin.precision, **settings, **stored}


@rank_zero_only  # the others' runs are dummies, whose summary takes nothing
def saved(loggers: Sequence[Logger], scalars: dict[str, float]) -> None:
    """Say in the run's summary what is saved: at every look, for not every run comes to its end."""
    held, float32 = scalars[f"{PREFIX}held_gib"], scalars[f"{PREFIX}float32_gib"]
    for logger in loggers:
        if is_a(logger, "loggers.WandbLogger"):
            summary = logger.experiment.summary
            summary["memory saved"] = f"{float32 - held:.4g} GiB of {float32:.4g} GiB ({1 - held / float32:.1%})"
            summary[name_in(logger, f"{PREFIX}saved_gib")] = float32 - held


def table(loggers: Sequence[Logger], rows: Sequence[LayerReport], step: int) -> None:
    """Log the layers as one table."""
    columns = [field.name for field in fields(LayerReport)]
    cells = [list(asdict(row).values()) for row in rows]
    for logger in loggers:
        if is_a(logger, "loggers.WandbLogger"):
            logger.log_table(f"{PREFIX}layers", columns, cells, step=step)
        elif is_a(logger, "loggers.TensorBoardLogger"):
            text = [[str(cell) for cell in row] for row in (columns, *cells)]
            logger.experiment.add_text(f"{PREFIX}layers", markdown_table(text), step)


def histograms(loggers: Sequence[Logger], found: StepFigures, step: int) -> None:
    """Log how exponents spread over blocks, and shares of lost and of saturated updates over layers."""
    some = found.exponents.nonzero().flatten().tolist()
    bins = {}
    if some:
        numbers = range(some[0], some[-1] + 2)
        bins["exponents"] = found.exponents[some[0] : some[-1] + 1].tolist(), [each - ZERO - 0.5 for each in numbers]
    if found.counts:
        bins["lost_by_layer"] = _shares([each.lost_share for each in found.counts.values()])
        bins["saturated_by_layer"] = _shares([each.saturated_share for each in found.counts.values()])
    for logger in loggers:
        if is_a(logger, "loggers.WandbLogger"):
            import wandb

            shown = {f"{PREFIX}{name}": wandb.Histogram(np_histogram=each) for name, each in bins.items()}  # type: ignore[arg-type]
            logger.log_metrics(shown, step)
        elif is_a(logger, "loggers.TensorBoardLogger"):
            for name, (counts, edges) in bins.items():
                middles = [(low + high) / 2 for low, high in pairwise(edges)]
                weighted = [(middle * count, middle**2 * count) for middle, count in zip(middles, counts, strict=True)]
                sums = [sum(column) for column in zip(*weighted, strict=True)]
                logger.experiment.add_histogram_raw(
                    f"{PREFIX}{name}", edges[0], edges[-1], sum(counts), *sums, edges[1:], counts, step
                )


def _shares(shares: Sequence[float]) -> tuple[list[int], list[float]]:
    """Counts of shares in twentieths of the range from 0 to 1, and the limits of these."""
    counts = torch.histc(torch.tensor(shares).clamp(0, 1), SHARES, 0, 1)
    return counts.int().tolist(), [each / SHARES for each in range(SHARES + 1)]
