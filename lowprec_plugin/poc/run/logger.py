"""The logger of a run: it keeps numbers and writes ``metrics.csv``; what else a user's logger takes goes nowhere."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor

from lowprec_plugin.experiments.unlogged import Unlogged
from lowprec_plugin.text.files import whole_text

#: Rows between two writes.
ROWS = 100


class RunLogger(Unlogged):
    """Stands in for any logger: a module may call ``logger.log_image`` or ``logger.experiment.add_scalar``.

    Args:
        save_dir: folder of ``metrics.csv``.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self._save_dir, self._rows = save_dir, list[dict[str, Any]]()

    @property
    def save_dir(self) -> str:
        """Lightning's callbacks write here too."""
        return self._save_dir

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Every finite number that was logged, by name, as (step, value)."""
        found: dict[str, list[tuple[int, float]]] = {}
        for row in sorted(self._rows, key=lambda row: row["step"]):
            for name, value in row.items():
                number = isinstance(value, Real) and not isinstance(value, bool)  # a module may log words
                if number and name not in ("step", "epoch") and math.isfinite(value):
                    found.setdefault(name, []).append((row["step"], float(value)))
        return found

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row."""
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self._rows.append({**values, "step": len(self._rows) if step is None else step})
        if len(self._rows) % ROWS == 0:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write ``metrics.csv``, whole."""
        text, names = io.StringIO(), sorted({name for row in self._rows for name in row})
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        whole_text(Path(self._save_dir) / "metrics.csv", text.getvalue())

    def finalize(self, status: str) -> None:
        """Write the rest."""
        self.save()
