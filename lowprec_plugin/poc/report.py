"""The proof of concept's table: printed, and saved as Markdown with the runs beside it as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowprec_plugin.files import whole_text
from lowprec_plugin.markdown import markdown_table
from lowprec_plugin.poc.variants import FLOAT32, TWIN
from lowprec_plugin.quality import Comparison, compare

RunRecord = dict[str, Any]


def save(folder: Path, title: str, runs: Sequence[RunRecord]) -> str:
    """Write ``table.md`` and ``runs.json`` into ``folder``, each whole or not at all. Returns the text to print."""
    text = f"{title}\n\n{table(runs)}\n\n{LEGEND}\n"
    folder.mkdir(parents=True, exist_ok=True)
    whole_text(folder / "table.md", text)
    whole_text(folder / "runs.json", json.dumps({"title": title, "runs": list(runs)}, indent=1) + "\n")
    return f"{text}\nSaved to {folder / 'table.md'} and {folder / 'runs.json'}"


LEGEND = (
    "Bytes: weights and optimizer state held per parameter, read off the live tensors. Difference: mean over the seeds "
    "against float32; the standard error is what chaos alone gives, measured by float32 runs whose weights start one "
    "last bit away (twin), or what the differences' own spread gives if that is larger. Equal: accuracy within two "
    "standard errors and 0.3 % of float32. Step: median; small models on a CPU show the overhead of an operation, not "
    "its speed."
)


def table(runs: Sequence[RunRecord]) -> str:
    """One row per variant, in the order of the runs, as a Markdown table."""
    names = list(dict.fromkeys(run["variant"] for run in runs))
    header = [
        "variant", "bytes/param", "test accuracy", "difference", "equal?",
        "test loss", "difference", "step ms",
    ]  # fmt: skip
    rows = [header]
    for name in names:
        accuracy, loss = (_compare(runs, name, metric) for metric in ("test_accuracy", "test_loss"))
        rows.append(
            [
                name,
                f"{_median(runs, name, 'bytes_per_parameter'):.2f}",
                f"{100 * accuracy.setting:.2f} %",
                _difference(accuracy, name, 100, " pp", 2),
                _verdict(accuracy, name),
                f"{loss.setting:.4f}",
                _difference(loss, name, 1, "", 4),
                f"{_median(runs, name, 'step_ms'):.2f}",
            ]
        )
    return markdown_table(rows)


def _values(runs: Sequence[RunRecord], name: str, metric: str) -> list[float]:
    return [run[metric] for run in runs if run["variant"] == name]


def _median(runs: Sequence[RunRecord], name: str, metric: str) -> float:
    return statistics.median(_values(runs, name, metric))


def _compare(runs: Sequence[RunRecord], name: str, metric: str) -> Comparison:
    return compare(_values(runs, FLOAT32.name, metric), _values(runs, TWIN.name, metric), _values(runs, name, metric))


def _difference(comparison: Comparison, name: str, scale: float, unit: str, digits: int) -> str:
    if name == FLOAT32.name:
        return "-"
    return f"{scale * comparison.difference:+.{digits}f} ± {scale * comparison.standard_error:.{digits}f}{unit}"


def _verdict(comparison: Comparison, name: str) -> str:
    if name in (FLOAT32.name, TWIN.name):
        return "-"
    if comparison.equal is None:
        return "too few seeds"
    return "yes" if comparison.equal else "no, better" if comparison.difference > 0 else "no, worse"
