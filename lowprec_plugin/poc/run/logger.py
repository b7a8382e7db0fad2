"""The logger of a run: numbers go to ``metrics.csv``; whatever else a user's logger takes goes nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only

from lowprec_plugin.compat.bases import DummyLogger, ExperimentWriter
from lowprec_plugin.experiments.unlogged import Nothing, TakesAnything

#: Steps between two writes, as in CSVLogger.
STEPS = 100


class _Writer(ExperimentWriter, Nothing):
    """Writes the file."""


class RunLogger(TakesAnything, DummyLogger):
    """Stands in for any logger: a module may call ``logger.log_image`` or ``logger.experiment.add_scalar``.

    Not a ``CSVLogger``, whose ``__init__`` passes arguments to the next base: with two Lightnings, the other's.

    Args:
        save_dir: folder of ``metrics.csv``.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self._save_dir = save_dir
        self._writer: _Writer | None = None

    @property
    def save_dir(self) -> str:
        """Lightning's callbacks write here too."""
        return self._save_dir

    @property
    def experiment(self) -> Any:
        """The writer, in the first process."""
        if rank_zero_only.rank > 0:  # type: ignore[attr-defined]
            return Nothing()
        self._writer = self._writer or _Writer(self._save_dir)
        return self._writer

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row."""
        self.experiment.log_metrics(metrics, step)
        if step is not None and (step + 1) % STEPS == 0:
            self.save()

    def save(self) -> None:
        """Write the rows since the last time."""
        self.experiment.save()

    def finalize(self, status: str) -> None:
        """Write the rest."""
        self.save()
