"""The logger of a run: numbers go to a file, and what the user's own logger takes besides goes nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.loggers.csv_logs import CSVLogger, ExperimentWriter


class _Writer(ExperimentWriter, _DummyExperiment):
    """Its second base takes every other call, as the rehearsal's does."""


class RunLogger(CSVLogger):
    """Stands in for any logger: a module may call ``logger.log_image`` or ``logger.experiment.add_scalar``."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes ``metrics.csv``."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment

    def __getattr__(self, name: str) -> Callable[..., None]:
        """A method of another logger, which does nothing."""
        if name.startswith("_"):  # Python's own questions, such as __deepcopy__
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return _nothing


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
