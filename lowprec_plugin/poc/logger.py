"""The logger of a run: numbers go to a file, and what the user's own logger takes besides goes nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only

from lowprec_plugin.compat.bases import DummyLogger, ExperimentWriter
from lowprec_plugin.experiments.unlogged import (
    Nothing,
    TakesAnything,
)

#: Steps between two writes to the file, as of CSVLogger.
STEPS = 100


class _Writer(ExperimentWriter, Nothing):
    """What writes the file."""


class RunLogger(TakesAnything, DummyLogger):
    """Stands in for any logger: a module may call ``logger.log_image`` or ``logger.experiment.add_scalar``.

    Not Lightning's ``CSVLogger``, whose ``__init__`` hands other arguments on to the base that comes next: with two
    Lightnings that is the other's.

    Args:
        save_dir: where ``metrics.csv`` goes.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self._save_dir = save_dir
        self._writer: _Writer | None = None

    @property
    def save_dir(self) -> str:
        """Where Lightning's callbacks write, too."""
        return self._save_dir

    @property
    def experiment(self) -> Any:
        """What writes ``metrics.csv``, in the first process."""
        if rank_zero_only.rank > 0:  # type: ignore[attr-defined]
            return Nothing()
        if self._writer is None:
            self._writer = _Writer(self._save_dir)
        return self._writer

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """A row of the file."""
        self.experiment.log_metrics(metrics, step)
        if step is not None and (step + 1) % STEPS == 0:
            self.save()

    def save(self) -> None:
        """Write what has been logged since the last time."""
        self.experiment.save()

    def finalize(self, status: str) -> None:
        """Write the rest."""
        self.save()
