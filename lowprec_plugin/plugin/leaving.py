"""Where a Lightning run's module is wanted in ordinary floats: after the run, and where its graph is logged."""

from __future__ import annotations

import copy
import gc
from collections.abc import Sequence
from functools import partial
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from lowprec_plugin.compat.lightning import logs_graph
from lowprec_plugin.optim import to_float_
from lowprec_plugin.plugin.averages import averages_in
from lowprec_plugin.plugin.strategies import trainer_of


def leave_float_(module: nn.Module, optimizers: Sequence[Optimizer]) -> bool:
    """Turn ``module``, ``optimizers`` and averages that callbacks keep of it into floats, in place.

    Whether it could be done; if not, a warning says why.

    A training that has ended well does not fail by this.
    """
    gc.collect()  # what holds the parameters' tensors in circles: DistributedDataParallel, graphs of losses
    try:
        to_float_(module, optimizers)
        for average in averages_in(module):
            to_float_(average.module)
    except ValueError as error:
        rank_zero_warn(f"leave_float=True: the module stays in fixed-point, for {error}")
        return False
    return True


def log_graphs_in_float(module: nn.Module) -> None:
    """Have the loggers of ``module``'s Trainer that log graphs trace a copy of it in floats, in place."""
    trainer = trainer_of(module)
    for logger in [] if trainer is None else trainer.loggers:
        if logs_graph(logger) and "log_graph" not in logger.__dict__:
            logger.log_graph = partial(_log_graph, logger)  # type: ignore[method-assign]


@rank_zero_only
def _log_graph(logger: Any, model: nn.Module, input_array: Any = None) -> None:
    type(logger).log_graph(logger, to_float_(copy.deepcopy(model)), input_array)
