"""The logger of a run: numbers go to a file, and what the user's own logger takes besides goes nowhere."""

from __future__ import annotations

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only

from lowprec_plugin.compat.bases import CSVLogger, ExperimentWriter
from lowprec_plugin.trainings.unlogged import Nothing, TakesAnything


class _Writer(ExperimentWriter, Nothing):
    """What writes the file."""


class RunLogger(CSVLogger, TakesAnything):
    """Stands in for any logger: a module may call ``logger.log_image`` or ``logger.experiment.add_scalar``."""

    @property
    def experiment(self) -> Any:
        """What writes ``metrics.csv``, in the first process."""
        if rank_zero_only.rank > 0:  # type: ignore[attr-defined]
            return Nothing()
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment
