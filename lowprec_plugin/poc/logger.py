"""The logger of a run: numbers go to a file, and what the user's own logger takes besides goes nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class _TakesAnything:
    """Any other method, which does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):  # Python's own questions, such as __deepcopy__
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return _nothing


class _Writer(ExperimentWriter, _TakesAnything):
    """What writes the file, in place of Weights & Biases' run, TensorBoard's writer or Neptune's mapping."""

    def __getitem__(self, key: Any) -> _Writer:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class RunLogger(CSVLogger, _TakesAnything):
    """Stands in for any logger: a module may call ``logger.log_image`` or ``logger.experiment.add_scalar``."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes ``metrics.csv``."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
